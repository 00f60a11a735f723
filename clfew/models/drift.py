"""Drift: how far training has moved an encoder from the weights it started from, measured without
labels.

Shape suffixes: N images, D features, K neighbours.
"""

import shlex
from pathlib import Path

import numpy as np
import torch

from clfew import console
from clfew.data.splits import evenly_spaced
from clfew.models.artifacts import load_encoder
from clfew.models.encoder import Encoder
from clfew.models.features import apply_to_cache

IMAGES = 1000
"""The number of images that are compared, evenly spaced over the data."""

NEIGHBOURS = 10
FEWEST_KEPT = 0.15
"""The alarm is raised if a smaller fraction of each image's ten nearest neighbours is unchanged, beyond
what two encoders that have nothing in common share on so few images."""

LEAST_RANK = 0.05
"""The alarm is raised if the effective rank falls below this fraction of its value before training. The
limit is so low that it detects collapse only; an adapter reduces the effective rank without collapse."""


def neighbours_kept(before_NxD: np.ndarray, after_NxD: np.ndarray) -> float:
    """Returns the mean fraction of each image's ten nearest neighbours (by cosine similarity) that are
    the same for both encoders.

    It is 1 if nothing has changed, and 10 / (N - 1) for two encoders that have nothing in common.
    """
    pairs = zip(_nearest(before_NxD), _nearest(after_NxD), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in pairs]))


def effective_rank(features_NxD: np.ndarray) -> float:
    """Returns the effective rank of centred features: the exponential of the entropy of their singular
    values (Garrido et al., RankMe, ICML 2023). It measures how many dimensions the features use."""
    values = np.linalg.svd(features_NxD - features_NxD.mean(0), compute_uv=False)
    fractions = values / max(values.sum(), 1e-12) + 1e-7
    return float(np.exp(-(fractions * np.log(fractions)).sum()))


def drift(before_NxD: np.ndarray, after_NxD: np.ndarray) -> dict[str, float]:
    """Returns `neighbours_kept`, how large it is for two encoders that have nothing in common, and the
    effective rank after training divided by that before."""
    ratio = effective_rank(after_NxD) / effective_rank(before_NxD)
    others = max(1, len(before_NxD) - 1)
    return {
        "kept_by_chance": round(min(NEIGHBOURS, others) / others, 4),
        "neighbours_kept": round(neighbours_kept(before_NxD, after_NxD), 4),
        "rank_ratio": round(ratio, 4),
    }


def alarm(found: dict[str, float]) -> str:
    """Returns what is wrong with a drift (as from `drift`), "" if nothing is."""
    chance = found.get("kept_by_chance", 0.0)
    if found["neighbours_kept"] - chance < FEWEST_KEPT * (1 - chance):
        return f"only {found['neighbours_kept']:.0%} of the nearest neighbours are unchanged by training"
    if found["rank_ratio"] < LEAST_RANK:
        return f"the effective rank of the features is only {found['rank_ratio']:.0%} of what it was"
    return ""


def _nearest(features_NxD: np.ndarray) -> np.ndarray:
    """Returns the indices of each image's nearest neighbours by cosine similarity of centred features,
    (N, K)."""
    unit = features_NxD - features_NxD.mean(0)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True).clip(1e-12)
    cosine_NxN = unit @ unit.T
    np.fill_diagonal(cosine_NxN, -np.inf)
    count = min(NEIGHBOURS, len(unit) - 1)
    return np.argpartition(-cosine_NxN, count - 1, axis=1)[:, :count]


def report_drift(
    start: Path,
    encoder: Encoder,
    pixels: np.ndarray,
    aspects: np.ndarray,
    indices: np.ndarray,
    device: torch.device,
    precision: str,
) -> dict[str, float]:
    """Measures the drift of `encoder` from the artifact `start` and reports it on stderr, with an alarm
    if it is too large.
    """
    compared = evenly_spaced(indices, IMAGES)
    before, after = (
        apply_to_cache(network, encoder.size, pixels, aspects, compared, device, precision)
        for network in (load_encoder(start)[0], encoder)
    )
    found = drift(before, after)
    console.say(
        f"drift      {found['neighbours_kept']:.0%} of each image's nearest neighbours are unchanged by "
        f"training, the effective rank is {found['rank_ratio']:.0%} of what it was"
    )
    if wrong := alarm(found):
        console.say(
            f"alarm      {wrong}: the weights before training may be better. Compare with "
            f"clfew finetune --from {shlex.quote(str(start))}, or train less."
        )
    return found
