"""Any file given as an artifact is refused in one sentence, or loads exactly what was written."""

import io
import json
import os
import pickle
import struct
from dataclasses import asdict

import numpy as np
import pytest
import torch
from made_artifacts import METADATA, assert_refused, raw, read_bounded, tensors_of, write

from clfew.errors import UserError
from clfew.models.artifacts import load_classifier, load_encoder, save_classifier
from clfew.models.metadata import FORMAT_VERSION, ArtifactMetadata, read_metadata
from clfew.runs.checksum import MAX_HEADER, add_checksum


def with_columns(columns) -> dict:
    """Returns the data of a classifier with these as the columns of its list of labels."""
    return {"finetune": METADATA.data["finetune"] | {"label_columns": columns}}


FIELDS = {
    "no version": {"format_version": ...}, "a version to come": {"format_version": 99},
    "a version that is no number": {"format_version": "3"}, "true": {"format_version": True},
    "a class that is a number": {"classes": ["cat", 3]},
    "a class that is a list": {"classes": ["a", []]},
    "a class twice": {"classes": ["cat", "cat"]}, "one class": {"classes": ["cat"]},
    "another number of classes": {"classes": ["a", "b", "c"]},
    "classes that are none": {"classes": "ab"},
    "an unknown field": {"code": "import os"}, "a field too few": {"mean": ...},
    "an encoder there is not": {"encoder": "resnet8-w8; rm -rf /"},
    "a wider encoder": {"encoder": "resnet8-w512"}, "a deeper encoder": {"encoder": "resnet110-w8"},
    "an encoder of two and a half gigabytes": {"encoder": "vit_h_14", "size": 224},
    "an encoder within itself": {"encoder": "split:" * 40 + "resnet8-w8"},
    "an encoder too deep": {"encoder": "resnet6000002-w8"},
    "a path": {"encoder": "../../../etc/passwd"}, "a neck of a terabyte": {"neck": 2**20},
    "an adapter of a terabyte": {"adapter": 2**20}, "features of a terabyte": {"dim": 2**20},
    "a negative size": {"size": -16}, "a huge size": {"size": 10**9}, "a size of 0": {"size": 0},
    "a mean that is no number": {"mean": [0.5, float("nan"), 0.5]},
    "a std of 0": {"std": [0, 1, 1]},
    "a mean of many digits": {"mean": [10**400, 0, 0]},
    "a temperature of 0": {"temperature": 0.0}, "a temperature without end": {"temperature": 1e999},
    "another kind": {"kind": "pickle"}, "another mode": {"mode": "eval"},
    "a stage too high": {"stage": 60},
    "a stage of a large image": {"stage": 1, "size": 1024, "dim": 8},
    "data that is none": {"data": []}, "an unknown input": {"sees": "infrared"},
    "a split rule of letters": {"data": {"finetune": {
        "source": "/images", "labels": 4, "split_seed": 0, "label_file": None, "split_rule": "x",
    }}},
    "data of nothing": {"data": {}}, "a step that is a number": {"training": {"pretrain": 3}},
    "a source that is a number": {"data": {"finetune": METADATA.data["finetune"] | {"source": 1}}},
    "columns that are numbers": {"data": with_columns([1, 2])},
    "three columns": {"data": with_columns(["a", "b", "c"])},
    "columns that are text": {"data": with_columns("ab")},
    "a drift that is a list": {"training": {"pretrain": {"drift": [1]}}},
    "weights without a name": {"training": {"init": {}}},
}  # fmt: skip


@pytest.mark.parametrize("change", FIELDS.values(), ids=FIELDS)
def test_wrong_metadata_is_refused(artifact, tmp_path, change):
    content = {k: v for k, v in (asdict(METADATA) | change).items() if v is not ...}
    path = write(tmp_path / "x.safetensors", content, tensors_of(artifact))
    read_bounded(read_metadata, path), read_bounded(load_encoder, path)
    assert isinstance(read_bounded(load_classifier, path), str)


def tensor(start, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HEADERS = {
    "nothing": b"", "no JSON": b"{", "a list": b"[]", "null": b"null", "a number": b"7",
    "not UTF-8": b'{"\xff": 1}', "nested": b"[" * 100_000, "no tensors": b"{}",
    "overlapping": {"a": tensor(0, 4), "b": tensor(0, 4)},
    "a hole": {"a": tensor(0, 4), "b": tensor(8, 12)},
    "beyond the file": {"a": tensor(0, 4), "b": tensor(4, 2**40, (2**38 - 1,))},
    "negative": {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    "a shape that overflows": {"a": tensor(0, 4, (2**62, 2**62))},
    "a shape that does not fit": {"a": tensor(0, 4, (7,))},
    "backwards": {"a": tensor(4, 0)}, "an unknown type": {"a": tensor(0, 4, dtype="PICKLE")},
    "metadata that is a list": {"__metadata__": [], "a": tensor(0, 4)},
    "metadata that is nested": {"__metadata__": {"clfew": {}}, "a": tensor(0, 4)},
    "a wrong checksum": {"__metadata__": {"clfew": "{}", "seal": "0"}, "a": tensor(0, 4)},
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_wrong_header_is_refused(tmp_path, header):
    assert_refused(raw(tmp_path / "x.safetensors", header, bytes(12)))


def shifted(header, data):
    """Places one tensor where another is."""
    first, second = [n for n, t in header.items() if t.get("shape") == [8]][:2]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    return data


def holed(header, data):
    last = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    header[last]["data_offsets"] = [place + 8 for place in header[last]["data_offsets"]]
    return data + bytes(8)


def reshaped(header, data):
    header["classifier.head.weight"]["shape"] = [4, 16]
    return data


def halved(header, data):
    """Changes a tensor to 16-bit numbers, as many as fit into its bytes."""
    header["classifier.head.weight"] |= {"dtype": "F16", "shape": [2, 64]}
    return data


def grown(header, data):
    return data + bytes(64)


@pytest.mark.parametrize("change", [shifted, holed, reshaped, halved, grown])
def test_an_artifact_whose_tensors_are_misplaced_is_refused(artifact, tmp_path, change):
    content = artifact.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    data = change(header, content[8 + size :])
    path = tmp_path / "x.safetensors"
    path.write_bytes(add_checksum(raw(path, header, data).read_bytes()))
    # It is not refused for missing metadata, as the headers above are.
    found = read_bounded(load_classifier, path)
    assert isinstance(found, str) and "not one that clfew wrote" not in found


@pytest.mark.parametrize("size", [0, 7, MAX_HEADER + 1, 2**40, 2**64 - 1])
def test_a_header_of_an_impossible_size_is_refused(tmp_path, size):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b"{}" * 50)
    assert_refused(path)


def test_ten_million_classes_are_refused(tmp_path):
    names = ",".join(f'"{i}"' for i in range(10_000_000))
    metadata = json.dumps({"clfew": '{"classes": [' + names + "]}"})
    assert_refused(raw(tmp_path / "x.safetensors", f'{{"__metadata__": {metadata}}}'.encode()))


def test_more_classes_than_can_be_written_are_refused_at_once(artifact, tmp_path):
    classifier, metadata, _ = load_classifier(artifact)
    classes = [f"{i:0250d}" for i in range(70_000)]
    many = ArtifactMetadata(**asdict(metadata) | {"classes": classes})
    with pytest.raises(UserError, match="cannot be written"):
        save_classifier(tmp_path / "x", classifier, many, np.empty(0), np.empty(0))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(artifact, tmp_path, value):
    tensors = tensors_of(artifact)
    tensors["classifier.head.weight"][1, 3] = value
    path = write(tmp_path / "x.safetensors", tensors=tensors)
    with pytest.raises(UserError, match="not finite"):
        load_classifier(path)


def test_a_file_without_its_checksum_is_refused(artifact, tmp_path):
    path = write(tmp_path / "x.safetensors", tensors=tensors_of(artifact), with_checksum=False)
    with pytest.raises(UserError, match="checksum is missing"):
        load_classifier(path)


def test_one_changed_weight_is_noticed_where_weights_are_read(artifact, tmp_path):
    content = bytearray(artifact.read_bytes())
    content[-1000] ^= 1
    (tmp_path / "x.safetensors").write_bytes(content)
    read_metadata(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="weights do not match their checksum"):
        load_classifier(tmp_path / "x.safetensors")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_a_pickle_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"x": Bomb()}, buffer)
    for content in (pickle.dumps(Bomb()), buffer.getvalue()):
        (tmp_path / "x.safetensors").write_bytes(content)
        assert_refused(tmp_path / "x.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_metadata_is_shown_as_text_and_never_run(clfew, artifact, tmp_path):
    evil = "<script>alert(1)</script>\x1b[2J/etc/passwd"
    metadata = asdict(METADATA) | {
        "classes": [evil, "b"],
        "clfew_version": evil,
        "training": {evil: {evil: evil}},
    }
    write(tmp_path / "x.safetensors", metadata, tensors_of(artifact), note=evil)
    shown = clfew.ok("info", "x.safetensors", cwd=tmp_path).stdout
    assert "\x1b" not in shown and "\\x1b[2J" in shown
    assert json.loads(clfew.ok("info", "x.safetensors", "--format", "json", cwd=tmp_path).stdout)


def test_metadata_is_text_in_a_report(clfew, artifact, images, tmp_path):
    images(tmp_path / "images", classes=["cat", "dog"], each=3)
    evil = "<script>alert(1)</script>\x1b[2J<img src=x onerror=alert(1)>"
    metadata = asdict(METADATA) | {
        "clfew_version": evil,
        "method": evil,
        "training": {evil: {evil: evil, "command": evil}},
        "data": {"finetune": METADATA.data["finetune"] | {"source": evil, evil: evil}},
    }
    write(tmp_path / "x.safetensors", metadata, tensors_of(artifact), note=evil)
    result = clfew.ok("eval", "images", "--from", "x.safetensors", "--out", "eval", cwd=tmp_path)
    page = (tmp_path / "eval/report.html").read_text()
    assert "&lt;script&gt;alert" in page and "<script>alert" not in page and "<img src=x" not in page
    assert "\x1b" not in result.stderr + result.stdout + page


def test_the_format_that_is_written_is_the_one_that_is_read(artifact):
    assert read_metadata(artifact)[0].format_version == FORMAT_VERSION
