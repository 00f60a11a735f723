from types import SimpleNamespace

import pytest

from clfew.data.content import read_content
from clfew.data.sources import open_source
from clfew.distillation import parts
from clfew.distillation.parts import find_parts, restored_parts
from clfew.errors import UserError


@pytest.fixture
def teacher(image_folder):
    """Metadata of a teacher whose pretraining images and labelled ones are the same, but the pretraining
    images lay elsewhere."""
    source = open_source(str(image_folder({"a": 3, "b": 3})))
    content = read_content(source)
    before = {"source": "/gone/images", "content": content, "group_by": "1"}
    learned = {"source": source.spec, "content": content, "split_rule": source.rule, "group_by": "1"}
    return SimpleNamespace(data={"pretrain": before, "finetune": learned})


def test_pretraining_images_that_are_the_labelled_ones_are_one_source(teacher):
    (part,) = find_parts(teacher, None)
    spec = teacher.data["finetune"]["source"]
    assert (part.spec, part.group_by) == (spec, "1")
    assert part.known == ["/gone/images", spec]


def test_images_are_read_once_for_all_steps_that_learned_from_them(teacher, image_folder, monkeypatch):
    place, reads = image_folder({"a": 3, "b": 3}, "elsewhere"), []
    monkeypatch.setattr(
        "clfew.data.content.read_content", lambda s: (reads.append(s), read_content(s))[1]
    )
    (part,) = find_parts(teacher, str(place))
    assert part.spec == str(place) and len(part.known) == 2 and len(reads) == 1


def test_other_images_are_another_source_without_its_groups(teacher, image_folder):
    first, second = find_parts(teacher, str(image_folder({"c": 4}, "others")))
    assert first.group_by == "1" and second.group_by is None and second.known == []


def test_data_sets_are_not_looked_for_beside_others():
    """Opening one might download it."""
    assert parts._beside("hf:cats", "/a/images", "/b/images") == "hf:cats"
    assert parts._beside("/a/labels.csv:label=dx", "/a/images", "/b/images") == "/b/labels.csv:label=dx"


def test_a_list_that_is_gone_is_named(teacher):
    row = {"spec": "/gone/list.csv:label=dx", "group_by": None, "known": []}
    with pytest.raises(UserError, match=r"not in /gone/list\.csv:label=dx any"):
        restored_parts(teacher, [row], None, "clfew distill --resume run")
