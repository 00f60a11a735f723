"""Computes a network's features or outputs for cached images."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from clfew.data.augment import evaluation_view
from clfew.data.cache_arrays import RowReader
from clfew.data.to_device import to_device
from clfew.group import command as groups
from clfew.group.command import everywhere
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
    (len(indices), D). Several processes share the images out.

    The network is put into eval mode and left there.
    """
    work = _Work(network, size, pixels, aspects, device, precision)
    if groups.has(pixels) and len(indices) > work.step:
        return everywhere(_apply_to_share, work, indices)
    return np.concatenate(list(work.rows(indices)))


@dataclass(frozen=True)
class _Work:
    """What `apply_to_cache` does, whatever the images are."""

    network: nn.Module
    size: int
    pixels: np.ndarray
    aspects: np.ndarray
    device: torch.device
    precision: str

    @property
    def step(self) -> int:
        return batch_size(self.size, self.device)

    @torch.no_grad()
    def rows(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the network's results, a batch at a time."""
        keep_freed_memory(self.device)
        network: Any = self.network
        network.to(self.device, memory_format=torch.channels_last).eval()
        read = RowReader(self.pixels)
        for start in range(0, len(indices), self.step):
            rows = indices[start : start + self.step]
            arrays = read(rows), self.aspects[rows]
            yield apply(network, self.size, *arrays, self.device, self.precision)
        read.close()


def _apply_to_share(work: _Work, indices: np.ndarray) -> np.ndarray:
    """Applies a network to every so manieth batch in each process: each batch is one that a single
    process would have, so its numbers are too. Returns the whole in the leader."""
    group = groups.current()
    assert group is not None
    batch_of_N = np.arange(len(indices)) // work.step
    rows = list(work.rows(indices[batch_of_N % group.size == group.rank]))
    width = max(group.exchange(rows[0].shape[1] if rows else 0))
    parts = group.collect(np.concatenate([*rows, np.empty((0, width), np.float32)]))
    whole = np.empty((len(indices), width), np.float32)
    for rank, part in enumerate(parts):
        whole[batch_of_N % group.size == rank] = part
    return whole


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
