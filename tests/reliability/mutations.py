"""Image files of every accepted format and kind, and random damage to them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

INTERESTING = (0, 1, 2, 0x7F, 0x80, 0xFF)
PNG_HEADER = 8


def originals() -> dict[str, bytes]:
    """Returns small intact files; their names contain format, mode and options."""
    y, x = np.mgrid[:20, :24]
    rgb = Image.fromarray(np.stack([10 * x, 12 * y, 5 * (x + y)], axis=2).astype(np.uint8))
    grey, palette = rgb.convert("L"), rgb.quantize(16)
    deep = Image.fromarray((2000 * x + y).astype(np.uint16))
    rgba = rgb.convert("RGBA")
    rgba.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: the image must be rotated.
    animated = {"save_all": True, "append_images": [rgb.rotate(90), grey.convert("RGB")]}
    saved = [
        ("JPEG", rgb, {"exif": exif}),
        ("JPEG", rgb, {"progressive": True}),
        ("JPEG", grey, {}),
        ("JPEG", rgb.convert("CMYK"), {"subsampling": 0}),
        ("PNG", rgb, {"exif": exif}),
        ("PNG", rgba, {}),
        ("PNG", palette, {"transparency": 3}),
        ("PNG", deep, {}),
        ("PNG", rgb.convert("1"), {}),
        ("GIF", palette, {"transparency": 3}),
        ("GIF", rgb, animated),
        ("WEBP", rgb, {"exif": exif}),
        ("WEBP", rgba, {"lossless": True}),
        ("WEBP", rgb, animated),
        ("BMP", rgb, {}),
        ("BMP", palette, {}),
        ("BMP", rgba, {}),
        *(
            ("TIFF", image, {"compression": how})
            for image, how in [
                (rgb, "raw"),
                (rgb, "tiff_lzw"),
                (rgb, "tiff_adobe_deflate"),
                (rgb, "jpeg"),
                (rgba, "packbits"),
                (rgb.convert("1"), "group4"),
                (deep, "raw"),
            ]
        ),
        ("TIFF", rgb, animated),
        ("PPM", rgb, {}),
        ("PPM", grey, {}),
        ("PPM", rgb.convert("1"), {}),
        ("PPM", deep, {}),
    ]
    files = {}
    for number, (kind, image, options) in enumerate(saved):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[f"{number} {kind} {image.mode} {' '.join(options)}"] = buffer.getvalue()
    plain = " ".join(map(str, np.asarray(rgb).flatten()))
    return files | {"plain PPM": f"P3 24 20 255\n{plain}".encode()}


def mutate(content: bytes, others: list[bytes], random: np.random.Generator) -> bytes:
    """Returns the file with random damage in a few places.

    Half of the time a PNG's checksums are corrected, so that the damage is not found by them.
    """
    data = bytearray(content)
    for _ in range(random.integers(1, 5)):
        _damage(data, others, random)
    if data.startswith(b"\x89PNG") and random.integers(2):
        _mend_checksums(data)
    return bytes(data)


def _damage(data: bytearray, others: list[bytes], random: np.random.Generator) -> None:
    # Headers are short but matter most: half of the damage is within the first 64 bytes.
    within = len(data) if random.integers(2) else min(len(data), 64)
    start = int(random.integers(within + 1))
    stop = start + int(random.integers(1, 9))
    how = random.integers(7)
    if how == 0 and start < len(data):
        data[start] ^= 1 << int(random.integers(8))
    elif how == 1:
        data[start:stop] = bytes(random.integers(0, 256, stop - start, dtype=np.uint8))
    elif how == 2:
        data[start:stop] = bytes([random.choice(INTERESTING)]) * (stop - start)
    elif how == 3:
        del data[start : stop if random.integers(3) else None]
    elif how == 4:
        data[start:start] = data[start : start + int(random.integers(1, 200))]
    elif how == 5:
        data[start : start + 4] = struct.pack(
            random.choice(["<I", ">I"]), int(random.integers(0, 2 ** random.integers(1, 33)))
        )
    else:
        other = others[random.integers(len(others))]
        place = int(random.integers(len(other)))
        data[start:stop] = other[place : place + int(random.integers(1, 100))]


def _mend_checksums(data: bytearray) -> None:
    place = PNG_HEADER
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4
