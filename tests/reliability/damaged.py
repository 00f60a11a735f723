"""Files that are no images, damaged images, and small files whose headers give an enormous size."""

import io
import zlib
from collections.abc import Iterator

import numpy as np
from corpus import HEIGHT, WIDTH, File, picture, saved
from handmade import RGB, bmp, gif, jpeg_frame, png, tiff, tiff_of, webp_header
from PIL import Image

CANNOT = "cannot be decoded|whose header cannot be read"
UNKNOWN = "not an image in an accepted format"


def truncated() -> Iterator[File]:
    """Yields the start of a file of each kind, which is not enough to show the picture."""
    p = picture(13)
    for name, content in {
        "baseline.jpg": saved(p, "JPEG"),
        "progressive.jpg": saved(p, "JPEG", progressive=True),
        "cmyk.jpg": saved(p, "JPEG", "CMYK"),
        "still.gif": saved(p, "GIF"),
        "rgb.bmp": saved(p, "BMP"),
        "rgb.png": png(p, 8, RGB),
        "interlaced.png": png(p, 8, RGB, True),
        "16.png": png(p.astype(np.uint16) * 257, 16, RGB),
        "lossy.webp": saved(p, "WEBP"),
        "animated.webp": saved(p, "WEBP", more=[picture(14)]),
        "raw.tif": saved(p, "TIFF"),
        "lzw.tif": saved(p, "TIFF", compression="tiff_lzw"),
        "tiled.tif": tiff_of(p, tile=(16, 16)),
        "bands.tif": tiff_of(np.dstack([p, p]), tag_262=1),
        "binary.ppm": b"P6 24 16 255 " + p.tobytes(),
    }.items():
        for fraction in (50, 95):
            yield File(f"{fraction}-{name}", content[: fraction * len(content) // 100], reason=CANNOT)


def bombs() -> Iterator[File]:
    """Yields small files whose headers give an enormous size."""
    p, huge = picture(), (50_000, 50_000)
    yield File("bomb.png", png(p, 8, RGB, size=huge), reason="pixels")
    yield File("bomb.jpg", jpeg_frame(saved(p, "JPEG"), size=(65_500, 65_500)), reason="pixels")
    yield File("bomb.bmp", bmp(*huge, 24, p.tobytes()), reason="pixels")
    yield File("bomb.ppm", b"P6 50000 50000 255 " + p.tobytes(), reason="pixels")
    yield File("bomb.tif", tiff_of(p, tag_256=huge[0], tag_257=huge[1]), reason="pixels")
    bands = np.dstack([p, p])
    yield File(
        "bomb-of-bands.tif", tiff_of(bands, tag_262=1, tag_256=50_000, tag_257=50_000), reason="pixels"
    )
    many = tiff_of(bands, tag_262=1, tag_256=9_000, tag_257=9_000, tag_277=60_000)
    yield File("bomb-of-samples.tif", many, reason=CANNOT + "|GiB")
    deflated = tiff(
        {256: WIDTH, 257: HEIGHT, 258: [8] * 5, 259: 8, 277: 5, 262: 1, 278: HEIGHT},
        [zlib.compress(bytes(300_000_000), 9)],
    )
    yield File("bomb-in-a-strip.tif", deflated, reason=CANNOT)
    yield File("bomb.gif", gif((60_000, 60_000), (0, 0, 5, 4), np.zeros((4, 5), int)), reason="pixels")
    beyond = gif((5, 4), (0, 0, 60_000, 60_000), np.zeros((4, 5), int))
    yield File("bomb-in-a-frame.gif", beyond, reason="pixels")
    yield File("bomb.webp", webp_header(16_000, 16_000), reason="pixels|cannot be decoded")
    yield File(
        "bomb-in-a-tile.tif", tiff_of(p, tag_322=60_000, tag_323=30_000, tag_259=5), reason=CANNOT
    )
    text = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    yield File("bomb-in-a-text.png", png(p, 8, RGB, before=[(b"zTXt", text)]), reason=CANNOT)


def refused() -> Iterator[File]:
    """Yields files that are no images, images of formats that are not accepted, and damaged images."""
    p = picture(15)
    yield File("empty.png", b"", reason="empty file")
    for name, content in {
        "web-page.jpg": b"<!doctype html><html><body><h1>404</h1></body></html>",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>",
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n",
        "zeros.jpg": bytes(1000),
        "text.gif": b"hello\n",
        "archive.png": b"PK\3\4" + bytes(100),
        "paper.jpg": saved(p, "PDF"),
        "icon.png": saved(p, "ICO"),
        "targa.bmp": saved(p, "TGA"),
        "paintbrush.jpg": saved(p, "PCX"),
        "program.png": b"\x7fELF" + bytes(100),
    }.items():
        yield File(name, content, reason=UNKNOWN)
    plain = saved(p, "JPEG")
    yield File("12-bit.jpg", jpeg_frame(plain, 0xC1, 12), reason="JPEG whose header cannot be read")
    yield File("lossless.jpg", jpeg_frame(plain, 0xC3), reason=CANNOT)
    yield File("without-tables.jpg", plain.replace(b"\xff\xdb", b"\xff\xec"), reason=CANNOT)
    sound, damaged = png(p, 8, RGB), bytearray(png(p, 8, RGB))
    damaged[len(damaged) // 2] ^= 0xFF
    yield File("damaged.png", bytes(damaged), reason=CANNOT)
    yield File("no-header.png", sound[:8], reason=CANNOT)
    yield File("no-width.png", png(p, 8, RGB, size=(0, HEIGHT)), reason=CANNOT)
    yield File("no-height.bmp", bmp(WIDTH, 0, 24, b""), reason=CANNOT)
    yield File("no-size.ppm", b"P6 0 0 255 ", reason=CANNOT)
    yield File("no-size.gif", gif((0, 0), (0, 0, 0, 0), np.zeros((0, 0), int)), reason=CANNOT)
    yield File("no-width.tif", tiff_of(p, tag_256=0), reason=CANNOT)
    yield File("float.tif", saved_values(p[..., 0].astype(np.float32) / 255), reason="no known range")
    yield File("32-bit.tif", saved_values(p[..., 0].astype(np.int32) * 1000), reason="beyond 16 bits")
    yield File("float.ppm", b"Pf\n2 2\n-1.0\n" + np.ones(4, "<f4").tobytes(), reason="no known range")
    yield File("negative.tif", saved_values(-p[..., 0].astype(np.int32)), reason="beyond 16 bits")


def saved_values(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


BAD = [*truncated(), *bombs(), *refused()]
