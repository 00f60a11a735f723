"""How far training has moved an encoder from the weights it started from, told without labels.

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
"""So many images, spread over the data, are compared."""

NEIGHBOURS = 10
FEWEST_KEPT = 0.15
"""Of an image's ten nearest neighbours, the share below which the alarm is raised."""


LEAST_RANK = 0.05
"""Of the effective rank before, the share below which the alarm is raised: collapse, not the choice of
fewer directions, which an adapter makes."""


def neighbours_kept(before_NxD: np.ndarray, after_NxD: np.ndarray) -> float:
    """The mean share of each image's ten nearest neighbours (by cosine) that both encoders agree on.

    1 where nothing has changed; 10 / N for two encoders that have nothing in common.
    """
    pairs = zip(_nearest(before_NxD), _nearest(after_NxD), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in pairs]))


def effective_rank(features_NxD: np.ndarray) -> float:
    """The exponential of the entropy of the singular values (Garrido et al., RankMe, ICML
    2023), after the mean is taken away: how many directions the features use."""
    values = np.linalg.svd(features_NxD - features_NxD.mean(0), compute_uv=False)
    shares = values / max(values.sum(), 1e-12) + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def drift(before_NxD: np.ndarray, after_NxD: np.ndarray) -> dict[str, float]:
    """`neighbours_kept`, and the effective rank in shares of what it was."""
    ratio = effective_rank(after_NxD) / effective_rank(before_NxD)
    return {
        "neighbours_kept": round(neighbours_kept(before_NxD, after_NxD), 4),
        "rank_ratio": round(ratio, 4),
    }


def alarm(found: dict[str, float]) -> str:
    """What is wrong with a drift, "" for nothing."""
    if found["neighbours_kept"] < FEWEST_KEPT:
        return f"only {found['neighbours_kept']:.0%} of the neighbours are still what they were"
    if found["rank_ratio"] < LEAST_RANK:
        return f"the features use {found['rank_ratio']:.0%} of the directions they used"
    return ""


def _nearest(features_NxD: np.ndarray) -> np.ndarray:
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
    """The drift of `encoder` from the artifact `start`, said on stderr, with an alarm where it is
    due.
    """
    compared = evenly_spaced(indices, IMAGES)
    before, after = (
        apply_to_cache(network, encoder.size, pixels, aspects, compared, device, precision)
        for network in (load_encoder(start)[0], encoder)
    )
    found = drift(before, after)
    console.say(
        f"drift      {found['neighbours_kept']:.0%} of the nearest neighbours are what they were, "
        f"{found['rank_ratio']:.0%} of the effective rank is left"
    )
    if wrong := alarm(found):
        console.say(
            f"alarm      {wrong}: the weights it started from may be worth more. Compare with "
            f"clfew finetune --from {shlex.quote(str(start))}, or train less."
        )
    return found
