"""A seal on safetensors files: digests of all that is in them, so that a changed byte is noticed.

The format checks that a file is whole, not that its bytes are those that were written. Two entries of
the metadata say it: "data" is the digest of the tensors' bytes, "seal" that of everything else in the
header. They protect from damage, not from whoever makes a file to deceive.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

MAX_HEADER = 16 * 2**20
"""Bytes: many times what 2,000 classes with long names take. What is larger is not read."""

_DATA, _CHECKSUM = "data", "seal"
_NO_HEADER = "its header cannot be read"


class Damaged(Exception):
    """A file that is not as it was written; the message says what is wrong with it."""


def add_checksum(content: bytes) -> bytes:
    """A whole safetensors file with both digests in its metadata."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), memoryview(content)[8 + size :]
    metadata = header.setdefault("__metadata__", {})
    metadata[_DATA] = _digest(data)
    metadata[_CHECKSUM] = _digest(_canonical(header))
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > MAX_HEADER:
        raise Damaged(f"its description would take {len(encoded):,} bytes")
    return struct.pack("<Q", len(encoded)) + encoded + data


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file. Raises Damaged, also where a seal is there and does not fit;
    OSError."""
    with open(path, "rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
        if size > min(MAX_HEADER, path.stat().st_size):
            raise Damaged(_NO_HEADER)
        encoded = file.read(size)
    try:
        header = json.loads(encoded)
        metadata = header.get("__metadata__", {})
        with_checksum = metadata.get(_CHECKSUM)
        if with_checksum is not None and with_checksum != _digest(_canonical(header)):
            raise Damaged("its header is not as it was written")
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise Damaged(_NO_HEADER) from None
    return header


def has_checksum(header: dict[str, Any]) -> bool:
    return _CHECKSUM in header.get("__metadata__", {})


def check_data(path: Path, header: dict[str, Any]) -> None:
    """Raises Damaged where the tensors of a sealed file are not as they were written; OSError."""
    if not has_checksum(header):
        return
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        file.seek(8 + struct.unpack("<Q", file.read(8))[0])
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != header["__metadata__"].get(_DATA):
        raise Damaged("its weights are not as they were written")


def _canonical(header: dict[str, Any]) -> bytes:
    metadata = {key: value for key, value in header["__metadata__"].items() if key != _CHECKSUM}
    return json.dumps(header | {"__metadata__": metadata}, sort_keys=True).encode()


def _digest(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
