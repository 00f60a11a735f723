"""The codes of a pool of images (see `codes`), computed once and kept beside the image caches."""

import contextlib
import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from clfew import console
from clfew.data.cache_arrays import Layout, RowReader, cache_folder, create_file, map_file, reserve
from clfew.data.cache_folder import ImageCache
from clfew.data.cache_reuse import temporary_prefix
from clfew.data.pixel_scale import PixelScale
from clfew.errors import UserError
from clfew.finetuning.start import Start
from clfew.models.features import apply_to_cache, digest_of_weights
from clfew.selection.codes import AXES, codes_of, projection_of

SAMPLE = 10_000
"""The most images by which the axes are found."""

FORMAT = 1
_CHUNK = 2048


def pool_codes(
    start: Start,
    cache: ImageCache,
    scale: PixelScale | None,
    pool: np.ndarray,
    device: torch.device,
    precision: str,
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that reads the codes of some images of a pool, int16 (M, A), by their places in
    it. They are computed a part at a time and kept in a file of the cache folder, so that the next round
    need not wait. scale: of the source's pixels. pool: indices in the source, in any order; the axes are
    found by the first ones. Raises UserError if the file cannot be written."""
    file = cache_folder() / f"codes-{_key(start, cache, scale, pool, device, precision)}.safetensors"
    layout: Layout = {"codes": ("I16", np.dtype("<i2"), (len(pool), min(AXES, start.encoder.dim)))}
    codes = _kept(file, layout)
    if codes is None:
        _write(file, layout, start, cache, pool, device, precision)
        codes = _kept(file, layout)
    if codes is None:
        raise UserError(f"{file} cannot be read.", "set CLFEW_CACHE to another folder.")
    return RowReader(codes)


def _kept(file: Path, layout: Layout) -> np.memmap | None:
    """Returns the codes in a file, None if there is none or it was cut off."""
    try:
        codes = map_file(file, layout, "r")["codes"]
    except (OSError, ValueError, struct.error):
        return None
    with contextlib.suppress(OSError):  # Another user's cache can still be read.
        os.utime(file)
    return codes


def _write(
    file: Path,
    layout: Layout,
    start: Start,
    cache: ImageCache,
    pool: np.ndarray,
    device: torch.device,
    precision: str,
) -> None:
    """Computes the codes. They are written in a folder of this process and then moved, so that a
    half-written file is never found."""

    def features(images: np.ndarray) -> np.ndarray:
        arrays = (cache.pixels, cache.aspects, images)
        return apply_to_cache(start.encoder, start.encoder.size, *arrays, device, precision)

    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=file.parent, prefix=temporary_prefix()))
        create_file(temporary / file.name, layout)
        reserve(temporary / file.name)
        codes = map_file(temporary / file.name, layout, "r+")["codes"]
        with console.progress_bar("features") as update:
            parts = []
            for done, part in _parts(pool, 0, min(SAMPLE, len(pool))):
                update(done, len(pool))
                parts.append(features(part))
            first = np.concatenate(parts)
            projection = projection_of(first, bool(start.metadata.parts))
            codes[: len(first)] = codes_of(first, projection)
            for done, part in _parts(pool, len(first), len(pool)):
                update(done, len(pool))
                codes[done : done + len(part)] = codes_of(features(part), projection)
            update(len(pool), len(pool))
        codes.flush()
        os.replace(temporary / file.name, file)
    except OSError as error:
        raise UserError(
            f"The features cannot be kept in {file.parent} ({error.strerror or error}).",
            "free some space, or set CLFEW_CACHE to another folder.",
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _parts(pool: np.ndarray, start: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(start, end, _CHUNK):
        yield first, pool[first : min(first + _CHUNK, end)]


def _key(
    start: Start,
    cache: ImageCache,
    scale: PixelScale | None,
    pool: np.ndarray,
    device: torch.device,
    precision: str,
) -> str:
    """Returns a digest of all that codes depend on: files of the same bytes have other pixels on another
    scale, or with other bands."""
    encoder = start.encoder
    network = (digest_of_weights(encoder), encoder.name, encoder.size, encoder.input, encoder.stage)
    settings = (FORMAT, network, device.type, precision, cache.side, str(scale))
    digest = hashlib.blake2b(str(settings).encode(), digest_size=12)
    digest.update(cache.digests[pool].astype("<u8").tobytes())
    return digest.hexdigest()
