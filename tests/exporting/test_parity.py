"""An export that answers differently is found out, however it differs."""

import io

import numpy as np
import pytest
from exported import CLASSES, KINDS, probabilities
from PIL import Image

from clfew.data.decode import decode
from clfew.data.sources import open_source
from clfew.exporting import parity
from clfew.exporting.parity import files_of, generated, parity_of
from clfew.models.metadata import ArtifactMetadata

SIDE, SIZE = 20, 16
CLASSIFIER = KINDS["linear"]()
METADATA = ArtifactMetadata(
    "classifier", "resnet8-w8", SIZE, SIDE, [0.5] * 3, [0.2] * 3, 32, "", True, "0.1.0"
)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(parity, "BATCHES", {3: 3, 8: 8})


def right(pixels):
    return probabilities(CLASSIFIER, pixels, SIDE)


def compared(run, files=None):
    files = files or generated(12)
    return parity_of(run, CLASSIFIER, METADATA, files, "of them", len(files))


def test_the_same_answers_are_the_same():
    batches = set()

    def run(pixels):
        batches.add(len(pixels))
        return right(pixels)

    found = compared(run)
    assert (found.problem, found.same_class, found.different_files) == ("", 1, 0)
    assert found.difference < 1e-6  # A batch of another size may be summed in another order.
    assert (found.images, found.batches, batches) == (12, (1, 3, 8), {1, 3, 8})
    assert found.sizes == 14  # Of twelve files, and of two batches.


def test_probabilities_that_differ_are_found():
    found = compared(lambda pixels: right(pixels) + 0.0011 * (len(pixels) == 8))
    assert "probabilities of the same pixels differ by up to 0.0011" in found.problem


def test_no_numbers_are_no_answers():
    found = compared(lambda pixels: right(pixels) * np.nan)
    assert "differ by up to nan" in found.problem


def test_another_class_is_found_and_only_where_there_is_a_margin(monkeypatch):
    monkeypatch.setattr(parity, "MOST_DIFFERENT", 2)

    def turned(pixels):
        return right(pixels)[:, ::-1]

    found = compared(turned)
    assert found.same_class < 1 and "are put in another class" in found.problem
    monkeypatch.setattr(parity, "MARGIN", 1.0)
    assert compared(turned).same_class == 1


def test_one_of_200_files_may_be_another_class_and_no_more():
    def found(different, files):
        return parity.Parity(files, "", 1, (1,), 0.0, 1.0, files, different)

    assert [found(n, 200).problem for n in (0, 1)] == ["", ""]
    assert found(1, 20).problem == found(5, 1000).problem == ""
    assert found(1, 200).as_row()["from_files"] == 0.995
    assert "of 200 files" in found(2, 200).problem
    assert "6 are put in another class" in found(6, 1000).problem


def test_where_there_are_no_files_of_the_user_generated_ones_count():
    calls = []

    def other(pixels):
        calls.append(len(pixels))
        return right(pixels)[:, ::-1] if len(calls) > 4 else right(pixels)

    files = generated(12)
    few = parity_of(other, CLASSIFIER, METADATA, files, "", 4)
    assert (few.files, few.different_files) == (4, 0)
    calls.clear()
    none = parity_of(other, CLASSIFIER, METADATA, files, "", 0)
    assert none.files == 12 and none.different_files > 3


def test_more_files_are_added_up(image_folder):
    source = open_source(str(image_folder({"cat": 20, "dog": 20})))
    first, rest = files_of(source, 10), files_of(source, 20, skip=10)
    assert len(first) == 10 and len(rest) == 20
    assert not {content for content, _ in first} & {content for content, _ in rest}
    begun = compared(right, first)
    found = parity.with_more_files(begun, lambda p: right(p)[:, ::-1], CLASSIFIER, METADATA, rest)
    assert found.files == 30 and 0 < found.different_files <= 20
    assert parity.with_more_files(begun, right, CLASSIFIER, METADATA, rest).different_files == 0


def test_files_are_read_as_predict_reads_them(monkeypatch):
    """A JPEG file that is decoded at another scale has other pixels there."""
    random = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (900, 900, 3), dtype=np.uint8)).save(file, "JPEG")
    seen = []
    real = parity.load_square
    monkeypatch.setattr(parity, "load_square", lambda *a: seen.append(real(*a)) or seen[-1])
    compared(right, [(file.getvalue(), None)])
    whole = parity.to_square(decode(file.getvalue()), SIDE)
    assert len(seen) == 1 and (seen[0][0] != whole[0]).any()


def test_generated_files_are_of_many_kinds():
    images = [decode(content) for content, _ in generated(60)]
    sides = [side for image in images for side in image.size]
    assert min(sides) < 20 and max(sides) > 500 and len({image.size for image in images}) == 60
    pixels = [np.asarray(image).astype(int) for image in images]
    grey = [bool((np.ptp(each, axis=2) <= 2).all()) for each in pixels]
    assert 5 < sum(grey) < 30
    formats = {Image.open(io.BytesIO(content)).format for content, _ in generated(4)}
    assert formats == {"PNG", "JPEG"}
    assert [c for c, _ in generated(5)] == [c for c, _ in generated(5)]


def test_files_that_cannot_be_read_are_left_out(image_folder):
    folder = image_folder({"cat": 6, "dog": 6})
    (folder / "cat/003.png").write_bytes(b"")
    assert len(files_of(open_source(str(folder)), 200)) == 11
    assert len(files_of(open_source(str(folder)), 4)) == 4


def test_classes_are_counted_from_the_network():
    assert right(np.zeros((1, 9, 9, 3), np.uint8)).shape == (1, CLASSES)
