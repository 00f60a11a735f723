import io
import os
import signal
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from clfew.data.decode import (
    MAX_PIXELS,
    BadImage,
    decode,
    image_size,
    load_square,
    read_bytes,
    to_square,
)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def first_pixel(content):
    image = decode(content)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def rgb(pixels):
    return Image.fromarray(np.asarray(pixels, dtype=np.uint8))


def noisy(width=64, height=48):
    return rgb(np.random.default_rng(0).integers(0, 256, (height, width, 3)))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_is_decoded_as_it_is(kind):
    assert np.array_equal(np.asarray(decode(encoded(noisy(), kind))), np.asarray(noisy()))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("RGBA", (4, 4), (200, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), (204, 204, 204)),
    ],
)
def test_modes_become_rgb_with_transparency_on_white(image, expected):
    assert first_pixel(encoded(image)) == expected


def test_a_transparent_palette_colour_is_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 200, 0, 0])
    assert first_pixel(encoded(image)) == (200, 0, 0)
    assert first_pixel(encoded(image, transparency=1)) == (255, 255, 255)
    assert first_pixel(encoded(image, "GIF", transparency=1)) == (255, 255, 255)


def test_cmyk_is_converted():
    assert first_pixel(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF")) == (255, 0, 0)
    red = first_pixel(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert red[0] > 240 and max(red[1:]) < 15


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
def test_sixteen_bits_are_scaled_to_eight(kind, value, expected):
    image = Image.fromarray(np.full((4, 4), value, dtype=np.uint16))
    assert first_pixel(encoded(image, kind)) == (expected,) * 3


@pytest.mark.parametrize("values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70000, np.int32)])
def test_values_without_a_known_range_are_refused(values):
    with pytest.raises(BadImage):
        decode(encoded(Image.fromarray(values), "TIFF"))


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert first_pixel(content) == (255, 0, 0)


# The pixels that a camera held each way writes for an upright picture (EXIF 2.3, tag Orientation).
WRITTEN_AS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", WRITTEN_AS)
def test_exif_orientation_is_undone(orientation):
    upright = np.asarray(noisy(7, 5))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(rgb(np.ascontiguousarray(WRITTEN_AS[orientation](upright))), exif=exif)
    assert np.array_equal(np.asarray(decode(content)), upright)
    assert load_square(content, 4)[1] == pytest.approx(7 / 5)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_data_does_not_lose_the_image():
    content = encoded(noisy(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(content).size == (64, 48)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.9])
def test_truncated_files_are_bad(kind, fraction):
    content = encoded(noisy(), kind)
    decode(content)
    with pytest.raises(BadImage):
        decode(content[: int(fraction * len(content))])


@pytest.mark.parametrize("options", [{"progressive": True}, {"optimize": True}])
def test_truncated_jpegs_of_other_kinds_are_bad(options):
    content = encoded(noisy(), "JPEG", **options)
    with pytest.raises(BadImage):
        load_square(content[: len(content) // 2], 8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!doctype html><html><body>404</body></html>", "not an image"),
        (bytes(1000), "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "."),
        (b"\xff\xd8\xff\xe0", "."),
        (b"P", "not an image"),
    ],
)
def test_a_file_that_is_not_an_image_is_bad_with_a_reason(content, reason):
    with pytest.raises(BadImage, match=reason) as error:
        decode(content)
    assert str(error.value) and "\n" not in str(error.value)


def test_formats_off_the_list_are_refused_although_pillow_knows_them():
    for kind in ("PDF", "ICO", "TGA", "SGI"):
        with pytest.raises(BadImage):
            decode(encoded(noisy(), kind))


def png_header(width, height):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + data + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (50_000, 50_000), (2**31 - 1, 1)])
def test_pixel_bombs_are_refused_by_their_header(width, height):
    assert width * height > MAX_PIXELS
    with pytest.raises(BadImage, match="pixels"):
        decode(png_header(width, height))


def test_image_size_reads_the_header_alone():
    assert image_size(png_header(300, 200)) == (300, 200)
    assert image_size(b"no image") is None


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")

    def give_up(number, frame):
        raise TimeoutError("read_bytes waits for a pipe")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(5)
    try:
        with pytest.raises(BadImage, match="not a regular file"):
            read_bytes(tmp_path / "pipe.png")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_file_that_cannot_be_read_is_bad_with_a_reason(tmp_path, monkeypatch):
    with pytest.raises(BadImage, match="No such file"):
        read_bytes(tmp_path / "missing.png")
    with pytest.raises(BadImage, match="not a regular file"):
        read_bytes(tmp_path)
    monkeypatch.setattr("clfew.data.decode.MAX_BYTES", 10)
    (tmp_path / "a.png").write_bytes(bytes(10))
    (tmp_path / "b.png").write_bytes(bytes(11))
    assert read_bytes(tmp_path / "a.png") == bytes(10)
    with pytest.raises(BadImage, match="larger"):
        read_bytes(tmp_path / "b.png")


def smooth(side):
    y, x = np.mgrid[:side, :side] / side
    return rgb(np.stack([255 * x, 255 * y, 128 + 100 * np.sin(7 * (x + y))], axis=-1))


def test_a_jpeg_decoded_at_a_smaller_scale_is_close_to_the_whole():
    content = encoded(smooth(512), "JPEG", quality=95)
    assert decode(content, at_least=40).size == (64, 64)
    fast, _ = load_square(content, 40)
    whole, _ = to_square(decode(content), 40)
    # Within two of 255 levels on average, and nowhere far off (an image shifted by one pixel of the
    # result would be 6 levels off).
    difference = np.abs(fast.astype(int) - whole.astype(int))
    assert difference.mean() < 2 and difference.max() < 20


@pytest.mark.parametrize(("width", "height"), [(512, 100), (100, 512), (300, 300)])
def test_a_smaller_scale_never_goes_below_the_size_requested(width, height):
    content = encoded(smooth(512).resize((width, height)), "JPEG")
    assert min(decode(content, at_least=60).size) >= 60


def test_to_square_squeezes_and_returns_the_aspect_ratio():
    pixels, aspect = to_square(smooth(64).resize((60, 20)), 10)
    assert pixels.shape == (10, 10, 3) and pixels.dtype == np.uint8 and aspect == 3.0
    image = noisy(10, 10)
    same, aspect = to_square(image, 10)
    assert np.array_equal(same, np.asarray(image)) and aspect == 1.0
