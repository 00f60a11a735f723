"""Collapse of a training: what is measured in each step, and what it is called."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

LEAST_STD, LEAST_EFFECTIVE_RANK, LEAST_ALIVE = 0.1, 1.2, 0.01
"""Of embeddings that point everywhere, of an effective rank, and of all counts: below these a training
has collapsed."""


FEWEST_EMBEDDINGS = 32
"""Fewer lie in few directions however healthy they are."""


def spread(embeddings_NxP: Tensor) -> Tensor:
    """How far embeddings point in different directions: 1 as random ones do, 0 where all are one."""
    unit = F.normalize(embeddings_NxP.detach().float(), dim=1)
    return unit.std(dim=0).mean() * unit.shape[1] ** 0.5


def directions(embeddings_NxP: Tensor) -> Tensor:
    """In how many directions embeddings differ, 1 where they lie on a line: the effective rank as the
    participation ratio (Σλ)² / Σλ² of the eigenvalues λ of their covariance. Of the first 256, which
    tell it as well."""
    unit = F.normalize(embeddings_NxP[:256].detach().float(), dim=1)
    centred = unit - unit.mean(0)
    gram_NxN = centred @ centred.T  # Its eigenvalues are those of the covariance, times a constant.
    return gram_NxN.trace() ** 2 / gram_NxN.square().sum().clamp(min=1e-12)


def health(embeddings_NxP: Tensor) -> dict[str, Tensor]:
    """What tells a collapse of embeddings: see `clfew.methods.collapse.collapse`."""
    found = {"spread": spread(embeddings_NxP)}
    if len(embeddings_NxP) >= FEWEST_EMBEDDINGS:
        found["directions"] = directions(embeddings_NxP)
    return found


def collapse(row: dict[str, float]) -> str:
    """What a row of a training's log says of a collapse, "" for nothing."""
    if row.get("spread", 1.0) < LEAST_STD:
        return f"embeddings have collapsed to {row['spread']:.0%} of the spread of random directions"
    if row.get("directions", np.inf) < LEAST_EFFECTIVE_RANK:
        return f"embeddings have collapsed to a line, an effective rank of {row['directions']:.2f}"
    if row.get("alive", 1.0) < LEAST_ALIVE:
        return f"only {row['alive']:.1%} of the counts are ever above zero"
    return ""


def collapse_summary(rows: list[dict[str, float]]) -> str:
    """When in a training's log a collapse was seen, and how it ended; "" for none."""
    steps = [int(row["step"]) for row in rows if collapse(row)]
    if not steps:
        return ""
    ending = f"At the end, {wrong}" if (wrong := collapse(rows[-1])) else "It was over before the end"
    return f"A collapse was seen from step {steps[0]:,} to step {steps[-1]:,}. {ending}."
