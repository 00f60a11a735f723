"""Checksums for safetensors files: digests of their whole content, so that a changed byte is noticed.

The format checks that a file is whole, not that its bytes are those that were written. Two entries of
the metadata check the bytes: "data" is the digest of the tensors' bytes, "seal" is the digest of
everything else in the header. They protect from damage, not from deliberate changes.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

MAX_HEADER = 16 * 2**20
"""In bytes: many times what 2,000 classes with long names take. A larger header is not read."""

_DATA, _CHECKSUM = "data", "seal"
_NO_HEADER = "its header cannot be read"


class Damaged(Exception):
    """A file whose bytes have changed since it was written. The message names what is wrong with it."""


def add_checksum(content: bytes) -> bytes:
    """Returns a whole safetensors file with both digests added to its metadata. Raises Damaged if the
    header would be too large."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), memoryview(content)[8 + size :]
    metadata = header.setdefault("__metadata__", {})
    metadata[_DATA] = _digest(data)
    metadata[_CHECKSUM] = _digest(_canonical(header))
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > MAX_HEADER:
        raise Damaged(f"its metadata would take {len(encoded):,} bytes")
    return struct.pack("<Q", len(encoded)) + encoded + data


def read_header(path: Path) -> dict[str, Any]:
    """Returns the header of a safetensors file.

    Raises Damaged if it cannot be read or does not match its checksum, if it has one; OSError.
    """
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
            raise Damaged("its header does not match its checksum")
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise Damaged(_NO_HEADER) from None
    return header


def has_checksum(header: dict[str, Any]) -> bool:
    return _CHECKSUM in header.get("__metadata__", {})


def check_data(path: Path, header: dict[str, Any]) -> None:
    """Raises Damaged if the tensors of a file with a checksum do not match it; OSError."""
    if not has_checksum(header):
        return
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        file.seek(8 + struct.unpack("<Q", file.read(8))[0])
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != header["__metadata__"].get(_DATA):
        raise Damaged("its weights do not match their checksum")


def _canonical(header: dict[str, Any]) -> bytes:
    metadata = {key: value for key, value in header["__metadata__"].items() if key != _CHECKSUM}
    return json.dumps(header | {"__metadata__": metadata}, sort_keys=True).encode()


def _digest(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
