import io

import numpy as np
import pytest
from PIL import Image

from clfew.data.decode import BadImage
from clfew.data.header import Header, read_header
from clfew.data.sources import open_source
from clfew.quality import headers
from clfew.quality.headers import findings_in_headers, read_headers, summary_of


def save(path, mode="RGB", size=(20, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path, **options)
    return path


def test_headers_tell_format_pixels_and_size(tmp_path):
    sixteen = tmp_path / "16.png"
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(sixteen)
    for path, expected in (
        (save(tmp_path / "a.jpg"), Header("JPEG", "RGB 8-bit", 20, 30)),
        (save(tmp_path / "b.png", "L"), Header("PNG", "L 8-bit", 20, 30)),
        (save(tmp_path / "c.png", "P"), Header("PNG", "P 8-bit", 20, 30)),
        (save(tmp_path / "d.jpg", "CMYK"), Header("JPEG", "CMYK 8-bit", 20, 30)),
        (save(tmp_path / "e.png", "1"), Header("PNG", "1 1-bit", 20, 30)),
        (sixteen, Header("PNG", "I 16-bit", 6, 5)),
        (save(tmp_path / "f.tif"), Header("TIFF", "RGB 8-bit", 20, 30)),
        (save(tmp_path / "jpg.png", format="JPEG"), Header("JPEG", "RGB 8-bit", 20, 30)),
    ):
        assert read_header(path) == read_header(io.BytesIO(path.read_bytes())) == expected


def test_colours_of_sixteen_bits_are_told(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs", reason="it writes PNG files of 16-bit colours")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.zeros((5, 6, 3), np.uint16)))
    assert read_header(tmp_path / "a.png") == Header("PNG", "RGB 16-bit", 6, 5)
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.zeros((5, 6, 7), np.uint16),
        photometric="minisblack",
        planarconfig="contig",
    )
    assert read_header(tmp_path / "a.tif").size == "6×5"


def test_no_header_has_a_reason(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "cut.png").write_bytes(save(tmp_path / "whole.png").read_bytes()[:12])
    (tmp_path / "folder.jpg").mkdir()
    for name, reason in (
        ("text.jpg", "not an image"), ("empty.jpg", "empty file"), ("link.jpg", "a link to a file"),
        ("cut.png", "header"), ("folder.jpg", "not a regular file"), ("none.jpg", "No such file"),
    ):  # fmt: skip
        with pytest.raises(BadImage, match=reason):
            read_header(tmp_path / name)


def found_in(folder):
    source = open_source(str(folder))
    return {each.name: each for each in findings_in_headers(source, read_headers(source))}


def test_odd_files_are_found(tmp_path):
    for i in range(12):
        save(tmp_path / f"{'ab'[i % 2]}/{i}.png")
    assert found_in(tmp_path) == {}
    (tmp_path / "a/text.jpg").write_text("hello")
    save(tmp_path / "a/icon.png", size=(8, 200))
    found = found_in(tmp_path)
    assert found["no_image"].notes == ["not an image in an accepted format"]
    assert found["no_image"].needs_person and not found["small"].needs_person
    source = open_source(str(tmp_path))
    assert source.identities[found["small"].sets[0][0]] == "a/icon.png"


@pytest.mark.parametrize("what", ["format", "pixels", "size", None])
def test_the_form_of_files_may_tell_their_class(tmp_path, what):
    for i in range(60):
        is_odd = i % 2 == 1 and i % 10 != 1
        save(
            tmp_path / f"{'ab'[i % 2]}/{i}.{'jpg' if what == 'format' and is_odd else 'png'}",
            "L" if what == "pixels" and is_odd else "RGB",
            (40, 40) if what == "size" and is_odd else (20, 30),
        )
    found = found_in(tmp_path)
    if what is None:
        assert found == {}
    else:
        assert [note.split()[1] for note in found["shortcuts"].notes] == [what]
        assert "24 of 24" in found["shortcuts"].notes[0]


def test_of_many_files_some_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "MOST", 5)
    for i in range(12):
        save(tmp_path / f"{'ab'[i % 2]}/{i}.png", size=(20 + i, 50))
    source = open_source(str(tmp_path))
    seen = []
    found = read_headers(source, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5) and len(found.indices) == 5
    summary = summary_of(found)
    assert summary["headers"] == 5 and summary["formats"] == {"PNG": 5}
    assert summary["shorter_side"]["smallest"] == 20 and summary["longer_side"]["largest"] == 50


def test_the_header_is_read_and_not_the_file(tmp_path, monkeypatch):
    path = save(tmp_path / "a" / "large.png", size=(3000, 2000))
    source = open_source(str(tmp_path))
    monkeypatch.setattr(
        type(source), "content", lambda *_: pytest.fail("read as a whole"), raising=False
    )
    (header,) = read_headers(source).headers
    assert (header.width, header.height) == (3000, 2000) and path.exists()
