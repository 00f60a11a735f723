"""Computes a network's features or outputs for cached images, or for files while they are read."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from clfew.data.augment import evaluation_view
from clfew.data.cache_arrays import RowReader
from clfew.data.decode import BadImage
from clfew.data.pixel_scale import PixelScale
from clfew.data.to_device import to_device
from clfew.data.workers import decode_ahead, decoders
from clfew.models.encoder import Encoder
from clfew.models.side_by_side import SideBySide, WithinLarger
from clfew.training.device import keep_freed_memory

T = TypeVar("T")

_RECENT: dict[tuple[object, ...], tuple[np.ndarray, np.ndarray]] = {}
_MOST_RECENT = 8

_ADAPTED_AT_ONCE = 4096


def batch_size(size: int, device: torch.device) -> int:
    """Returns the number of images per batch. On a CPU it is smaller for larger images, so that the
    activations between two layers fit its caches or nearly do."""
    return 256 if device.type != "cpu" else max(16, min(256, 16 * 224**2 // size**2))


@torch.no_grad()
def apply_to_cache(
    network: nn.Module,
    size: int,
    pixels: np.ndarray,
    aspects: np.ndarray,
    indices: np.ndarray,
    device: torch.device,
    precision: str = "fp32",
) -> np.ndarray:
    """Applies `network` to the evaluation view of the images `indices` of an image cache: float32,
    (len(indices), D).

    The network is put into eval mode and left there.
    """
    keep_freed_memory(device)
    network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    results = []
    step, read = batch_size(size, device), RowReader(pixels)
    for start in range(0, len(indices), step):
        rows = indices[start : start + step]
        results.append(apply(network, size, read(rows), aspects[rows], device, precision))
    read.close()
    return np.concatenate(results)


def remembered(
    network: nn.Module,
    pixels: np.ndarray,
    indices: np.ndarray,
    compute: Callable[[np.ndarray], np.ndarray],
    *settings: object,
) -> np.ndarray:
    """Returns the rows that `compute` returns for the images `indices` of an image cache. Rows that were
    computed before with the same weights and `settings` are reused: several label samples in one process
    need mostly the same features.
    """
    file = getattr(pixels, "filename", None)
    if file is None:  # A later array in memory can have the address of an earlier one.
        return compute(indices)
    key = (digest_of_weights(network), str(file), *map(str, settings))
    known, rows = _RECENT.pop(key, (np.empty(0, np.int64), None))
    missing = np.setdiff1d(indices, known)
    if len(missing):
        new = compute(missing)
        order = np.argsort(np.concatenate([known, missing]))
        known = np.concatenate([known, missing])[order]
        rows = (new if rows is None else np.concatenate([rows, new]))[order]
    assert rows is not None
    _RECENT[key] = (known, rows)  # At the end: the dictionary is ordered from oldest to newest.
    while len(_RECENT) > _MOST_RECENT:
        _RECENT.pop(next(iter(_RECENT)))
    return rows[np.searchsorted(known, indices)]


def digest_of_weights(network: nn.Module) -> str:
    """Returns a digest of the names and values of a network's weights and statistics."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def features_of(
    encoder: Encoder,
    pixels: np.ndarray,
    aspects: np.ndarray,
    indices: np.ndarray,
    device: torch.device,
    precision: str,
    standardised: bool = True,
) -> np.ndarray:
    """Returns an encoder's features of cached images, float32 (N, D). The features before the adapter
    are reused (see `remembered`), also by encoders that differ only in their adapter, and where encoders
    are used side by side. standardised: of such, whether their features are standardised, or each one's
    own."""
    parts = []
    for each in encoder.encoders if isinstance(encoder, SideBySide) else [encoder]:
        plain = each.without_adapter()
        backbone = plain if each.size == encoder.size else WithinLarger(plain)

        def compute(rows: np.ndarray, backbone: nn.Module = backbone) -> np.ndarray:
            return apply_to_cache(backbone, encoder.size, pixels, aspects, rows, device, precision)

        settings = (encoder.size, each.size, each.input, each.stage, device, precision)
        features = remembered(backbone, pixels, indices, compute, *settings)
        if each.adapter is not None:
            features = _in_parts(each.adapt, each, features, device)
        parts.append(features)
    features = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    if isinstance(encoder, SideBySide) and standardised:
        return _in_parts(encoder.joined, encoder, features, device)
    return features


def _in_parts(
    function: Callable[[Tensor], Tensor], encoder: Encoder, features: np.ndarray, device: torch.device
) -> np.ndarray:
    """Applies a function of an encoder to features, some at a time."""
    encoder.to(device).eval()
    with torch.no_grad():
        parts = torch.from_numpy(features).split(_ADAPTED_AT_ONCE)
        return torch.cat([function(part.to(device)).cpu() for part in parts]).numpy()


def apply_to_files(
    network: nn.Module,
    size: int,
    side: int,
    references: Iterable[T],
    read: Callable[[T], bytes],
    device: torch.device,
    precision: str = "fp32",
    scale: PixelScale | None = None,
) -> Iterator[tuple[list[T], list[BadImage | None], np.ndarray]]:
    """Applies `network` to images while later ones are decoded on all cores, in order and in bounded
    memory.

    `read` returns the encoded bytes of a reference or raises BadImage. Yields batches: the references,
    the error of each (None for a good image), and the network's float32 results for the good images.
    """
    keep_freed_memory(device)
    network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    decoded = decode_ahead(references, read, side, min(decoders(), torch.get_num_threads()), scale)
    step = batch_size(size, device)
    while batch := list(islice(decoded, step)):
        errors = [image if isinstance(image, BadImage) else None for _, image in batch]
        good = [image for _, image in batch if not isinstance(image, BadImage)]
        results = np.empty((0, 1), np.float32)
        if good:
            pixels = np.stack([image.pixels for image in good])
            aspects = np.array([image.aspect for image in good], np.float32)
            results = apply(network, size, pixels, aspects, device, precision)
        yield [reference for reference, _ in batch], errors, results


@torch.no_grad()
def apply(
    network: nn.Module,
    size: int,
    pixels_NxSxSx3: np.ndarray,
    aspects_N: np.ndarray,
    device: torch.device,
    precision: str = "fp32",
) -> np.ndarray:
    """Applies `network`, in eval mode on `device`, to the evaluation view of a few cached images: (N,
    D)."""
    images, aspects = to_device(pixels_NxSxSx3, device), to_device(aspects_N, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return network(evaluation_view(images, aspects, size)).float().cpu().numpy()
