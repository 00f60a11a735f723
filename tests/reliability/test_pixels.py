"""Wide pixels and bands are read on one scale for the whole source, which artifacts keep."""

import io
import json

import numpy as np
import pytest
import tifffile
from pixels import CASES, COLOURS, CONTIGUOUS, SLOPE, STEPS, bands_of, counts, tif

from clfew.data import decode as decoding
from clfew.data import workers
from clfew.data.decode import BadImage, decode
from clfew.data.find_scale import with_scale
from clfew.data.pixel_scale import PixelScale, scale_from
from clfew.data.source import Source


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
    assert source.scale is None
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
    read = np.asarray(decode(grey, None, PixelScale(bands=(1, 2, 3))))
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
    assert with_scale(source_of([whole] * 3)).scale is None
    assert np.abs(np.asarray(decode(whole)) - COLOURS).max() <= STEPS


@pytest.mark.parametrize(
    "data",
    [
        7,
        {},
        {"low": 0, "high": 1},
        {"low": 1, "high": 1, "bands": None, "is_float": False},
        {"low": 0, "high": float("inf"), "bands": None, "is_float": False},
        {"low": float("nan"), "high": 1, "bands": None, "is_float": False},
        {"low": True, "high": 2, "bands": None, "is_float": False},
        {"low": 0, "high": 1, "bands": [1, 2], "is_float": False},
        {"low": 0, "high": 1, "bands": [0, 1, 2], "is_float": False},
        {"low": 0, "high": 1, "bands": [1, 2, 10**9], "is_float": False},
        {"low": 0, "high": 1, "bands": None, "is_float": 1},
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
