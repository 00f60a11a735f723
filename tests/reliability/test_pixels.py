"""Wide pixels and bands are read on one scale for the whole source, which artifacts keep."""

import io
import json
import logging

import numpy as np
import pytest
import tifffile
from handmade import GREY, png, tiff
from PIL import Image
from pixels import CASES, COLOURS, CONTIGUOUS, SLOPE, STEPS, bands_of, counts, encoded, tif

from clfew.data import decode as decoding
from clfew.data import workers
from clfew.data.decode import BadImage, decode
from clfew.data.find_scale import with_scale
from clfew.data.pixel_scale import PixelScale, scale_from
from clfew.data.source import Source
from clfew.data.turns import LARGE, Turns

GOOD = {"low": 0, "high": 1, "bands": None, "is_float": False, "is_opaque": False}


def source_of(contents, ending=".tif", splits=None):
    n = len(contents)
    names = [f"{i}{ending}" for i in range(n)]
    splits = np.array(splits or ["train"] * n)
    return Source(
        "x", names, np.zeros(n, int), ["a"], splits, contents.__getitem__, "", reading="a folder"
    )


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_pixels_are_read_as_they_are_meant(case):
    source = with_scale(source_of([case.content] * 3, case.ending), case.bands)
    read = np.asarray(decode(case.content, None, source.scale)).astype(int)
    assert np.abs(read - case.expected).max() <= STEPS, (source.scale, source.reading)
    assert source.reading.startswith("a folder") and case.said in source.reading


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_other_processes_decode_the_same(case):
    scale = with_scale(source_of([case.content] * 3, case.ending), case.bands).scale
    form = workers._Form(
        12, None if scale is None else scale_from(json.loads(json.dumps(scale.as_data())))
    )
    processes = workers._Processes(form, 1)
    try:
        (there,) = processes.decode([case.content])
    finally:
        processes.close()
    ((_, here),) = workers.decode_ahead([0], lambda _: case.content, 12, 1, scale)
    assert np.array_equal(there.pixels, here.pixels)


def test_dark_and_bright_images_keep_their_brightness():
    dark, bright = counts(bands_of(1, 300)[..., 0]), counts(bands_of(1, 3000)[..., 0])
    source = with_scale(source_of([tif(dark), tif(bright)]))
    first, second = (np.asarray(decode(source.content(i), None, source.scale)).mean() for i in (0, 1))
    assert 5 < second / first < 15


def test_ordinary_images_have_no_scale_and_none_is_read_twice(monkeypatch):
    read = []
    contents = [tif(np.rint(bands_of(3, 255)).astype(np.uint8), photometric="rgb")] * 2000
    source = source_of(contents, ".jpg")
    monkeypatch.setattr(decoding, "read_wide", lambda *_: read.append(1))
    assert with_scale(source).scale is None and not read
    assert with_scale(source).reading == "a folder"


def test_the_test_split_says_nothing():
    low, high = tif(counts(bands_of(1, 200)[..., 0])), tif(counts(bands_of(1, 3000)[..., 0]))
    source = with_scale(source_of([low, low, high, high], splits=["train", "val", "test", "test"]))
    assert source.scale.high < 220


def test_strays_do_not_change_the_scale():
    usual = [tif(counts(bands_of(1, 65535)[..., 0]))] * 9
    stray = tif(np.rint(bands_of(1, 1e6))[..., 0].astype(np.int32))
    floats = tif(bands_of(1, 1)[..., 0].astype(np.float32))
    source = with_scale(source_of([*usual, stray, floats]))
    assert source.scale == PixelScale()
    for content, reason in ((stray, "beyond 16 bits"), (floats, "no known range")):
        with pytest.raises(BadImage, match=reason):
            decode(content, None, source.scale)


def test_whole_numbers_among_floats_are_refused():
    floats = tif(bands_of(1, 1)[..., 0].astype(np.float32))
    scale = with_scale(source_of([floats] * 3)).scale
    with pytest.raises(BadImage, match="beside floating-point"):
        decode(tif(counts(bands_of(1, 3000)[..., 0])), None, scale)


@pytest.mark.parametrize(
    ("content", "bands", "reason"),
    [
        (tif(counts(bands_of(4, 3000)), **CONTIGUOUS), (5, 4, 3), "it has 4 bands, and band 5"),
        (tif(counts(bands_of(1, 3000)[..., 0])), (4, 3, 2), "it has 1 band, and band 4"),
        (
            tif(np.rint(bands_of(3, 255)).astype(np.uint8), photometric="rgb"),
            (4, 3, 2),
            "it has 3 bands",
        ),
    ],
)
def test_an_image_without_a_band_is_refused(content, bands, reason):
    with pytest.raises(BadImage, match=reason):
        decode(content, None, PixelScale(bands=bands))


def test_grey_images_among_those_of_bands_stay_grey():
    grey = tif(np.rint(bands_of(1, 255)[..., 0]).astype(np.uint8))
    read = np.asarray(decode(grey, None, PixelScale(is_opaque=True)))
    assert np.array_equal(read[..., 0], read[..., 2]) and read.max() == 255


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("left", [0.5, 0.95])
def test_truncated_bands_are_refused(compression, left):
    content = tif(counts(bands_of(13, 3000)), **CONTIGUOUS, compression=compression)
    # The header is last in some of these files, so the pixels are cut out of the middle.
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        end = file.pages[0].dataoffsets[0] + int(file.pages[0].databytecounts[0] * left)
    with pytest.raises(BadImage):
        decode(content[:end])


def test_bands_that_take_too_much_memory_are_refused(monkeypatch):
    monkeypatch.setattr("clfew.data.wide.MAX_VALUES_BYTES", 20_000)
    with pytest.raises(BadImage, match="bands take more than"):
        decode(tif(counts(bands_of(13, 3000)), **CONTIGUOUS))


def test_without_the_extra_it_is_named_and_whole_16_bits_are_read(monkeypatch):
    monkeypatch.setattr("clfew.data.wide.importlib.util.find_spec", lambda name: None)
    compressed = {"compression": "lzw"}
    bands = tif(counts(bands_of(5, 3000)), **CONTIGUOUS, **compressed)
    dark = tif(counts(bands_of(3, 3000)), photometric="rgb", **compressed)
    whole = tif(counts(bands_of(3, 65535)), photometric="rgb", **compressed)
    for content in (bands, dark):
        scale = with_scale(source_of([content] * 3)).scale
        with pytest.raises(BadImage, match=r"pip install 'clfew\[tiff\]'"):
            decode(content, None, scale)
    assert with_scale(source_of([whole] * 3)).scale == PixelScale()
    for scale in (None, PixelScale()):
        assert np.abs(np.asarray(decode(whole, None, scale)) - COLOURS).max() <= STEPS


@pytest.mark.parametrize(
    "data",
    [
        7,
        {},
        {"low": 0, "high": 1},
        GOOD | {"low": 1},
        GOOD | {"high": float("inf")},
        GOOD | {"high": 1e30},
        GOOD | {"low": float("nan")},
        GOOD | {"low": True, "high": 2},
        GOOD | {"bands": [1, 2]},
        GOOD | {"bands": [0, 1, 2]},
        GOOD | {"bands": [1, 2, 10**9]},
        GOOD | {"is_float": 1},
        GOOD | {"is_opaque": None},
        GOOD | {"more": 1},
    ],
)
def test_what_is_no_scale_is_refused(data):
    with pytest.raises(ValueError):
        scale_from(data)


def test_the_steps_of_a_scale_are_of_one_width():
    values = np.arange(4096, dtype=np.uint16)[None]
    read = np.asarray(decode(tif(values), None, PixelScale(0, 4096)))[0, :, 0]
    assert np.array_equal(read, np.arange(4096) // 16)


def test_transparency_is_on_white():
    clear = np.zeros((*SLOPE.shape, 1))
    content = tif(
        counts(np.dstack([bands_of(3, 3000), clear])), photometric="rgb", extrasamples=["unassalpha"]
    )
    assert (np.asarray(decode(content, None, PixelScale(0, 3000))) == 255).all()


@pytest.mark.parametrize("fill", [-3.4028235e38, -9999.0, 1e20, np.nan, np.inf])
def test_a_value_that_fills_what_was_not_measured_does_not_set_the_scale(fill):
    values = bands_of(1, 1)[..., 0].astype(np.float32)
    values[:, :6] = fill
    scale = with_scale(source_of([tif(values)] * 3)).scale
    assert -0.1 < scale.low < 0.2 and 0.8 < scale.high < 1.1
    assert scale_from(scale.as_data()) == scale


@pytest.mark.parametrize("value", [0, 0.5, -1e20, 3e29, -5])
def test_images_of_one_value_have_a_scale(value):
    values = np.full((20, 20), value, np.float32)
    scale = with_scale(source_of([tif(values)] * 3)).scale
    assert scale_from(scale.as_data()) == scale
    decode(tif(values), None, scale)


@pytest.mark.parametrize(
    "values",
    [
        np.dstack([bands_of(3, 1), np.ones((36, 48))]).astype(np.float32),
        counts(np.dstack([bands_of(3, 3000), np.full((36, 48), 255)])),
        counts(np.dstack([bands_of(4, 3000), np.full((36, 48), 255)])),
        counts(np.dstack([bands_of(3, 3000), np.full((36, 48), 65535)])),
    ],
)
def test_an_opaque_image_is_not_white(values):
    for kind in ("unassalpha", "unspecified"):
        extras = [kind] * (values.shape[2] - 3)
        content = tif(values, photometric="rgb", planarconfig="contig", extrasamples=extras)
        scale = with_scale(source_of([content] * 3)).scale
        assert np.abs(np.asarray(decode(content, None, scale)) - COLOURS).max() <= STEPS


def test_a_border_does_not_set_the_scale():
    values = np.full((1000, 1000), 3000, np.uint16) + np.arange(1000, dtype=np.uint16) % 800
    values[:, 0], values[:, 500] = 10, 20
    scale = with_scale(source_of([tif(values)] * 3)).scale
    assert 3000 < scale.high < 3800


def test_bands_that_are_not_taken_have_no_say():
    values = np.dstack([bands_of(3, 3000), np.full((36, 48, 5), 1e6)]).astype(np.int32)
    content = tif(values, **CONTIGUOUS)
    scale = with_scale(source_of([content] * 3)).scale
    assert np.abs(np.asarray(decode(content, None, scale)) - COLOURS).max() <= STEPS


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [1, 5])
def test_negatives_are_turned(dtype, bands):
    values = (bands_of(bands, 1) * np.iinfo(dtype).max).astype(dtype)
    values = values[..., 0] if bands == 1 else values
    content = tif(values, photometric="miniswhite", planarconfig="contig" if bands > 1 else None)
    scale = with_scale(source_of([content] * 3)).scale
    read = np.asarray(decode(content, None, scale))
    assert read[0, 0, 0] == 255 and read[-1, -1, 0] < 5


def test_one_odd_file_does_not_take_transparency_from_the_others():
    clear = np.zeros((20, 20, 4), np.uint8)
    clear[..., 0] = 255
    two = tif(np.rint(bands_of(2, 255)).astype(np.uint8), **CONTIGUOUS)
    soft = np.full((20, 20, 4), 128, np.uint8)
    soft[:3, :, 3], soft[3:6, :, 3] = 0, 255
    for pixels, expected in ((clear, (255, 255, 255)), (soft, (255, 255, 255))):
        content = encoded(Image.fromarray(pixels), "PNG")
        scale = with_scale(source_of([content] * 9 + [two], ".png")).scale
        assert decode(content, None, scale).getpixel((0, 0)) == expected


def test_pages_are_bands_only_where_bands_are_named():
    for dtype in (np.uint8, np.uint16):
        stack = np.moveaxis(bands_of(3, 250), 2, 0).astype(dtype)
        content = tif(stack, photometric="minisblack")
        scale = with_scale(source_of([content] * 3), (1, 2, 3)).scale
        assert np.asarray(decode(content, None, scale))[-1, -1].tolist()[0] > 200
        assert len(set(np.asarray(decode(content, None, scale))[-1, -1].tolist())) == 3
        other = tif(np.rint(bands_of(4, 3000)).astype(np.uint16), photometric="rgb")
        scale = with_scale(source_of([content, other, other])).scale
        assert len(set(decode(content, None, scale).getpixel((47, 35)))) == 1


def test_pages_that_take_too_much_memory_are_refused(monkeypatch):
    content = tif(np.zeros((40, 36, 48), np.uint16), photometric="minisblack")
    monkeypatch.setattr("clfew.data.wide.MAX_VALUES_BYTES", 36 * 48 * 2 * 10)
    with pytest.raises(BadImage, match="pages take more"):
        decode(content, None, PixelScale(bands=(1, 2, 40)))


def test_images_of_many_bands_take_turns(monkeypatch):
    asked = []

    class Noting(Turns):
        def turn(self, pixels):
            asked.append(pixels > LARGE)
            return super().turn(pixels)

    monkeypatch.setattr(decoding, "turns", Noting())
    decode(tif(np.zeros((600, 600, 100), np.uint16), **CONTIGUOUS))
    decode(tif(np.zeros((600, 600), np.uint16)))
    assert asked == [True, False]


def test_decoding_leaves_one_handler():
    content = tif(counts(bands_of(5, 3000)), **CONTIGUOUS)
    for _ in range(3):
        decode(content)
    assert len(logging.getLogger("tifffile").handlers) == 1


def test_only_the_chunk_of_significant_bits_counts():
    text = png(counts(bands_of(1, 3000)), 16, GREY, before=[(b"tEXt", b"Comment\0about sBIT\x0c hi")])
    said = png(counts(bands_of(1, 3000)), 16, GREY, before=[(b"sBIT", b"\x0c")])
    assert with_scale(source_of([text] * 3)).scale.high < 3000
    assert with_scale(source_of([said] * 3)).scale.high == 4095


def test_a_list_of_strips_that_is_too_short_is_refused():
    short = tiff({256: 24, 257: 16, 258: [16] * 5, 259: 1, 262: 1, 277: 5, 278: 8}, [bytes(24 * 8 * 10)])
    with pytest.raises(BadImage, match="truncated"):
        decode(short)
