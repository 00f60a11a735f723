"""Builds image files byte by byte, of the kinds that Pillow reads but cannot write."""

import struct
import zlib

import numpy as np

# Each pass of Adam7 (PNG, third edition, section 8.2): first column and row, steps between them.
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""PNG's colour types."""


def png(samples: np.ndarray, bits: int, colour: int, interlaced=False, before=(), size=None) -> bytes:
    """Returns a PNG of samples (height, width, channels), each of `bits` bits.

    before: chunks (name, body) before the pixels. size: a wrong (width, height) for the header.
    """
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", *(size or (width, height)), bits, colour, 0, 0, interlaced)
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [samples]
    rows = [b"\0" + packed(row, bits) for part in parts if part.size for row in part]
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def packed(row: np.ndarray, bits: int) -> bytes:
    """Packs a row of samples, the most significant bit first."""
    if bits >= 8:
        return row.astype(f">u{bits // 8}").tobytes()
    return np.packbits((row.reshape(-1, 1) >> np.arange(bits - 1, -1, -1)) & 1).tobytes()


def tiff(tags: dict[int, object], blocks: list[bytes], tiles: bool = False) -> bytes:
    """Returns a little-endian TIFF with one directory. blocks: its strips, or its tiles.

    tags: an int or a sequence of ints for each tag number, all stored as longs.
    """
    start = 8 + sum(map(len, blocks))
    offsets = [8 + sum(map(len, blocks[:i])) for i in range(len(blocks))]
    places = (
        {324: offsets, 325: list(map(len, blocks))}
        if tiles
        else {273: offsets, 279: list(map(len, blocks))}
    )
    entries, beyond = [], b""
    after = start + 2 + 12 * len(tags | places) + 4
    for tag, value in sorted((tags | places).items()):
        values = [value] if isinstance(value, int) else list(value)
        body = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            beyond, body = beyond + body, struct.pack("<I", after + len(beyond))
        entries.append(struct.pack("<HHI", tag, 4, len(values)) + body)
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, start) + b"".join(blocks) + directory + beyond


def tiff_of(pixels: np.ndarray, tile: tuple[int, int] | None = None, planar=False, **more) -> bytes:
    """Returns an uncompressed TIFF of pixels (height, width, channels). tile: a tile's width and height.

    more: further tags by number, as in `tag_274=6` (Orientation).
    """
    height, width, channels = pixels.shape
    tags = {
        256: width,
        257: height,
        258: [8 * pixels.itemsize] * channels,
        259: 1,
        277: channels,
        262: 2 if channels > 2 else 1,
        284: 2 if planar else 1,
    } | {int(name[4:]): value for name, value in more.items()}
    if tile is None:
        planes = [pixels[..., c] for c in range(channels)] if planar else [pixels]
        return tiff(tags | {278: height}, [plane.tobytes() for plane in planes])
    blocks = []
    for y in range(0, height, tile[1]):
        for x in range(0, width, tile[0]):
            block = np.zeros((tile[1], tile[0], channels), pixels.dtype)
            part = pixels[y : y + tile[1], x : x + tile[0]]
            block[: part.shape[0], : part.shape[1]] = part
            blocks.append(block.tobytes())
    return tiff(tags | {322: tile[0], 323: tile[1]}, blocks, tiles=True)


def bmp(width: int, height: int, bits: int, body: bytes, palette: bytes = b"", compression=0) -> bytes:
    """Returns a BMP of Windows 3. A negative height means that the first row is the top one."""
    offset = 54 + len(palette)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, len(palette) // 4, 0
    )
    return struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset) + info + palette + body


def rle8(indices: np.ndarray) -> bytes:
    """Encodes indices (height, width) in BMP's run-length code; every run is one pixel long."""
    rows = [b"".join(bytes((1, value)) for value in row) + b"\0\0" for row in indices[::-1]]
    return b"".join(rows) + b"\0\1"


def gif(screen: tuple[int, int], frame: tuple[int, int, int, int], pixels: np.ndarray) -> bytes:
    """Returns a GIF of indices 0 and 1. frame: left, top, width, height; it may not fill the screen."""
    codes: list[int] = []
    for value in pixels.ravel().tolist():
        codes += [4, value]  # A clear code before each pixel keeps every code at three bits.
    bits = np.array([(code >> i) & 1 for code in [*codes, 5] for i in range(3)], np.uint8)
    data = np.packbits(bits, bitorder="little").tobytes()
    blocks = b"".join(
        bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255)
    )
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\x20\x40\x60\xff\0\0"
    return head + b"," + struct.pack("<HHHHB", *frame, 0) + b"\2" + blocks + b"\0;"


def webp_header(width: int, height: int) -> bytes:
    """Returns an animated WebP that has a size in its header and almost no content."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + size
    animation = b"ANIM" + struct.pack("<I", 6) + bytes(6)
    body = b"WEBP" + extended + animation
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_segment(content: bytes, marker: int) -> int:
    """Returns where a JPEG's segment with this marker begins."""
    place = 2
    while content[place + 1] != marker:
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return place


def jpeg_frame(content: bytes, marker: int | None = None, bits: int | None = None, size=None) -> bytes:
    """Returns a baseline JPEG whose frame header has another coding, precision, or (width, height)."""
    place, changed = jpeg_segment(content, 0xC0), bytearray(content)
    if marker is not None:
        changed[place + 1] = marker
    if bits is not None:
        changed[place + 4] = bits
    if size is not None:
        changed[place + 5 : place + 9] = struct.pack(">HH", size[1], size[0])
    return bytes(changed)
