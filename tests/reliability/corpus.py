"""Image files of every kind that is accepted, with the pixels they must decode to.

damaged.py has files that must be refused; layout.py writes both to a folder. The files are the same in
every run.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tifffile
from handmade import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, bmp, gif, png, rle8, tiff_of
from PIL import Image
from pillow_heif import register_heif_opener

WIDTH, HEIGHT = 24, 16
LOSSY = 24
"""The largest allowed error of a value from 0 to 255 in a lossy format, on these smooth pictures."""


@dataclass(frozen=True)
class File:
    """A file of the corpus.

    pixels: what it must decode to, uint8 (height, width, 3), with an error of at most `off` in each
    value; None if it must be refused. reason: a pattern that the reason of the refusal must match.
    """

    name: str
    content: bytes
    pixels: np.ndarray | None = None
    off: int = 0
    reason: str = ""


def picture(number: int = 0, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Returns a smooth picture without symmetry, so that every rotated or mirrored one differs."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    levels = [230 * x, 220 * y, 120 + 100 * np.sin(3 * x + 5 * y + number)]
    return np.stack(levels, axis=-1).astype(np.uint8)


def saved(pixels: np.ndarray, kind: str, mode: str = "RGB", more=(), **options) -> bytes:
    """Returns an image file as Pillow writes it. more: further frames or pages."""
    buffer = io.BytesIO()
    frames = [Image.fromarray(frame) for frame in more]
    pages = {"save_all": True, "append_images": frames} if frames else {}
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **pages, **options)
    return buffer.getvalue()


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(Image.fromarray(pixels).convert("L"))[..., None], 3, axis=-1)


def fewer(pixels: np.ndarray) -> np.ndarray:
    """Returns the picture in 64 colours."""
    return np.asarray(Image.fromarray(pixels).quantize(64).convert("RGB"))


def levels(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns grey samples of `bits` bits, (height, width, 1), and their RGB pixels."""
    most = 2**bits - 1
    samples = np.linspace(0, most, WIDTH * HEIGHT).round().astype(np.uint32).reshape(HEIGHT, WIDTH, 1)
    return samples, np.repeat((samples * 255 // most).astype(np.uint8), 3, axis=-1)


# How an upright picture is stored for each value of the EXIF tag Orientation (EXIF 2.3).
STORED_AS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def oriented(orientation: int, kind: str, pixels: np.ndarray, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(np.ascontiguousarray(pixels), kind, exif=exif, **options)


def jpegs() -> Iterator[File]:
    p = picture(1)
    for name, options in {
        "baseline": {},
        "progressive": {"progressive": True},
        "unsampled": {"subsampling": 0},
        "optimised": {"optimize": True},
        "restarts": {"restart_marker_blocks": 1},
    }.items():
        yield File(f"{name}.jpg", saved(p, "JPEG", quality=95, **options), p, LOSSY)
    yield File("grey.jpg", saved(p, "JPEG", "L", quality=95), grey(p), LOSSY)
    yield File("cmyk.jpg", saved(p, "JPEG", "CMYK", quality=95), p, LOSSY)
    yield File("three-dimensional.jpg", saved(p, "MPO", more=[picture(2)], quality=95), p, LOSSY)
    yield File("with-more-behind.jpg", saved(p, "JPEG", quality=95) + b"<html>" * 50, p, LOSSY)
    for orientation, stored in STORED_AS.items():
        content = oriented(orientation, "JPEG", stored(p), quality=95, subsampling=0)
        yield File(f"exif-{orientation}.jpg", content, p, LOSSY)
    for name, exif in {
        "cut": b"Exif\0\0II*\0\xff\xff\xff\xff",
        "none": b"Exif\0\0",
        "text": b"Exif\0\0<html>",
        "loop": b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0",
    }.items():
        yield File(f"exif-broken-{name}.jpg", saved(p, "JPEG", quality=95, exif=exif), p, LOSSY)
    for name, kind, value in (("0", 3, b"\0\0"), ("9", 3, b"\x09\0"), ("text", 2, b"six\0")):
        entry = struct.pack("<HHHI4s", 1, 0x0112, kind, 1 if kind == 3 else 4, value)
        exif = b"Exif\0\0II*\0\x08\0\0\0" + entry + bytes(4)
        yield File(f"exif-orientation-{name}.jpg", saved(p, "JPEG", quality=95, exif=exif), p, LOSSY)


def pngs() -> Iterator[File]:
    p = picture(2)
    for bits in (1, 2, 4, 8, 16):
        samples, expected = levels(bits)
        yield File(f"grey-{bits}.png", png(samples, bits, GREY), expected)
        yield File(f"grey-{bits}-interlaced.png", png(samples, bits, GREY, True), expected)
    wide = p.astype(np.uint16) * 257
    yield File("rgb.png", png(p, 8, RGB), p)
    yield File("rgb-interlaced.png", png(p, 8, RGB, True), p)
    yield File("rgb-16.png", png(wide, 16, RGB), p)
    yield File("rgb-16-interlaced.png", png(wide, 16, RGB, True), p)
    colours = picture(3, 16, 1)[0]
    for bits in (1, 2, 4, 8):
        indices = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH, 1) % min(2**bits, 16)
        palette = (b"PLTE", colours[: 2**bits].tobytes())
        # The first colour is wholly transparent: it becomes white.
        seen = np.where(np.arange(len(colours))[:, None] == 0, 255, colours).astype(np.uint8)
        yield File(
            f"palette-{bits}.png",
            png(indices, bits, PALETTE, before=[palette]),
            colours[indices[..., 0]],
        )
        content = png(indices, bits, PALETTE, True, [palette, (b"tRNS", b"\0")])
        yield File(f"palette-{bits}-transparent.png", content, seen[indices[..., 0]])
    alpha = np.where(np.arange(WIDTH) < 9, 0, 255).astype(np.uint8)[None, :, None].repeat(HEIGHT, 0)
    over = np.where(alpha == 0, 255, p).astype(np.uint8)
    yield File("rgba.png", png(np.concatenate([p, alpha], -1), 8, RGBA), over)
    both = np.concatenate([wide, alpha.astype(np.uint16) * 257], -1)
    yield File("rgba-16.png", png(both, 16, RGBA, True), over)
    greys = grey(p)
    over = np.where(alpha == 0, 255, greys).astype(np.uint8)
    yield File("grey-alpha.png", png(np.concatenate([greys[..., :1], alpha], -1), 8, GREY_ALPHA), over)
    key = struct.pack(">HHH", *map(int, p[5, 5]))
    # A transparent colour of 16 bits. Pillow would compare its low byte, 0x78 or 120, with every pixel.
    flat = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    content = png(flat.astype(np.uint16) * 257, 16, RGB, before=[(b"tRNS", b"\xff\x78" * 3)])
    yield File("rgb-16-colour-key.png", content, flat)
    hidden = np.where((p == p[5, 5]).all(-1)[..., None], 255, p).astype(np.uint8)
    yield File("rgb-colour-key.png", png(p, 8, RGB, before=[(b"tRNS", key)]), hidden)
    yield File("animated.png", saved(p, "PNG", more=[picture(4)]), p)
    yield File("exif-6.png", oriented(6, "PNG", STORED_AS[6](p)), p)
    yield File("exif-broken.png", png(p, 8, RGB, before=[(b"eXIf", b"MM\0*\xff\xff\xff\xff")]), p)
    for name, (width, height) in {"1x1": (1, 1), "1x5000": (1, 5000), "5000x1": (5000, 1)}.items():
        shaped = picture(5, width, height)
        yield File(f"{name}.png", png(shaped, 8, RGB), shaped)


def gifs_and_webps() -> Iterator[File]:
    p = picture(6)
    few = fewer(p)
    others = [picture(number) for number in (7, 8)]
    yield File("still.gif", saved(few, "GIF"), few)
    yield File("rows-in-order.gif", saved(few, "GIF", interlace=0), few)
    yield File("animated.gif", saved(few, "GIF", more=others), few)
    indices = np.arange(20).reshape(4, 5) % 3 // 2
    small = np.full((HEIGHT, WIDTH, 3), (0x20, 0x40, 0x60), np.uint8)
    small[2:6, 3:8][indices == 1] = (255, 0, 0)
    yield File("smaller-than-its-screen.gif", gif((WIDTH, HEIGHT), (3, 2, 5, 4), indices), small)
    yield File("lossy.webp", saved(p, "WEBP", quality=95), p, LOSSY)
    yield File("lossless.webp", saved(p, "WEBP", lossless=True), p)
    yield File("animated.webp", saved(p, "WEBP", more=others, lossless=True), p)
    clear = np.dstack([p, np.zeros((HEIGHT, WIDTH), np.uint8)])
    yield File("transparent.webp", saved(clear, "WEBP", "RGBA", lossless=True), np.full_like(p, 255))
    yield File("exif-8.webp", oriented(8, "WEBP", STORED_AS[8](p), lossless=True), p)


def bmps_and_ppms() -> Iterator[File]:
    p, (ones, black) = picture(9), levels(1)
    yield File("rgb.bmp", saved(p, "BMP"), p)
    yield File("grey.bmp", saved(p, "BMP", "L"), grey(p))
    yield File("1.bmp", saved(black, "BMP", "1"), black)
    yield File("rgba.bmp", saved(p, "BMP", "RGBA"), p)
    yield File("from-the-top.bmp", bmp(WIDTH, -HEIGHT, 24, p[..., ::-1].tobytes()), p)
    indices = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) % 16
    colours = picture(3, 16, 1)[0]
    palette = np.dstack([colours[None, :, ::-1], np.zeros((1, 16), np.uint8)]).tobytes()
    nibbles = (indices[::-1, ::2] << 4 | indices[::-1, 1::2]).astype(np.uint8).tobytes()
    yield File("4.bmp", bmp(WIDTH, HEIGHT, 4, nibbles, palette), colours[indices])
    yield File("rle8.bmp", bmp(WIDTH, HEIGHT, 8, rle8(indices), palette, 1), colours[indices])
    size = f"{WIDTH} {HEIGHT}\n".encode()
    text = " ".join(map(str, p.ravel())).encode()
    yield File("binary.ppm", b"P6\n# a comment\n" + size + b"255\n" + p.tobytes(), p)
    yield File("text.ppm", b"P3\n" + size + b"255\n" + text, p)
    wide = (p.astype(">u2") * 257).tobytes()
    yield File("16.ppm", b"P6\n" + size + b"65535\n" + wide, p, 1)
    yield File("grey.pgm", b"P5\n" + size + b"255\n" + grey(p)[..., 0].tobytes(), grey(p))
    samples, expected = levels(16)
    yield File("grey-16.pgm", b"P5\n" + size + b"65535\n" + samples.astype(">u2").tobytes(), expected)
    yield File("bits.pbm", b"P4\n" + size + np.packbits(1 - ones[..., 0], axis=1).tobytes(), black)


def tiffs() -> Iterator[File]:
    p, black = picture(10), levels(1)[1]
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield File(f"{compression}.tif", saved(p, "TIFF", compression=compression), p)
    yield File("jpeg.tif", saved(p, "TIFF", compression="jpeg", quality=95), p, LOSSY)
    yield File("fax.tif", saved(black, "TIFF", "1", compression="group4"), black)
    yield File("grey.tif", saved(p, "TIFF", "L"), grey(p))
    palette = io.BytesIO()
    Image.fromarray(p).quantize(64).save(palette, "TIFF")
    yield File("palette.tif", palette.getvalue(), fewer(p))
    yield File("rgba.tif", saved(p, "TIFF", "RGBA"), p)
    yield File("cmyk.tif", saved(p, "TIFF", "CMYK"), p)
    yield File("pages.tif", saved(p, "TIFF", more=[picture(11), picture(12, 9, 9)]), p)
    yield File("big.tif", saved(p, "TIFF", big_tiff=True), p)
    yield File("tiled.tif", tiff_of(p, tile=(16, 16)), p)
    yield File("planes.tif", tiff_of(p, planar=True), p)
    wide = p.astype(np.uint16) * 257
    yield File("rgb-16.tif", tiff_of(wide), p)
    samples, expected = levels(16)
    yield File("grey-16.tif", tiff_of(samples.astype(np.uint16)), expected)
    yield File("grey-16-tiled.tif", tiff_of(samples.astype(np.uint16), tile=(16, 16)), expected)
    head = b"MM\0*\0\0\0\x08\0\x08"
    tags = [
        (256, WIDTH),
        (257, HEIGHT),
        (258, 16),
        (259, 1),
        (262, 1),
        (273, 110),
        (278, HEIGHT),
        (279, 2 * WIDTH * HEIGHT),
    ]
    listed = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags) + bytes(4)
    motorola = (head + listed).ljust(110, b"\0") + samples.astype(">u2").tobytes()
    yield File("grey-16-motorola.tif", motorola, expected)
    for orientation in (3, 6):
        stored = np.ascontiguousarray(STORED_AS[orientation](p))
        yield File(f"orientation-{orientation}.tif", tiff_of(stored, tag_274=orientation), p)
    yield File("orientation-9.tif", tiff_of(p, tag_274=9), p)
    more = np.dstack([p, picture(11), picture(12)])
    yield File("bands.tif", tiff_of(more, tag_262=1), p)
    yield File("bands-in-planes.tif", tiff_of(more, tag_262=1, planar=True), p)
    yield File("bands-in-tiles.tif", tiff_of(more, tag_262=1, tile=(16, 16)), p)
    yield File("bands-orientation-6.tif", tiff_of(STORED_AS[6](more).copy(), tag_262=1, tag_274=6), p)
    yield File("bands-16.tif", tiff_of(wide, tag_262=1), p)
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    for compression in ("lzw", "zlib", "zstd", "packbits"):
        content = io.BytesIO()
        tifffile.imwrite(content, more, compression=compression, **options)
        yield File(f"bands-{compression}.tif", content.getvalue(), p)


def newer() -> Iterator[File]:
    """Formats that need a decoder which may be absent."""
    p = picture(9)
    register_heif_opener(thumbnails=False)
    for ending in ("jp2", "j2k"):
        yield File(f"whole.{ending}", saved(p, "JPEG2000", no_jp2=ending == "j2k"), p)
    yield File("grey.jp2", saved(p, "JPEG2000", "L"), grey(p))
    yield File("photo.avif", saved(p, "AVIF", quality=95), p, LOSSY)
    yield File("telephone.HEIC", saved(p, "HEIF", quality=95), p, LOSSY)
    yield File("grey.heif", saved(p, "HEIF", "L", quality=95), grey(p), LOSSY)
    for orientation in (3, 6):
        content = oriented(orientation, "AVIF", STORED_AS[orientation](p), quality=95)
        yield File(f"turned-{orientation}.avif", content, p, LOSSY)


GOOD = [*jpegs(), *pngs(), *gifs_and_webps(), *bmps_and_ppms(), *tiffs(), *newer()]
