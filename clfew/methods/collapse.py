"""Collapse during training: the values that are measured in each step, and the messages about it."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from clfew.group.tensors import whole

LEAST_STD, LEAST_EFFECTIVE_RANK, LEAST_ALIVE = 0.1, 1.2, 0.01
"""Training has collapsed if one of these falls below its limit: the standard deviation of embeddings (1
for random directions), their effective rank, or the fraction of counts that are ever above zero."""


FEWEST_EMBEDDINGS = 32
"""With fewer embeddings than this the effective rank is low however healthy they are."""


def embedding_std(embeddings_NxP: Tensor) -> Tensor:
    """Returns how far embeddings point in different directions, as a standard deviation: 1 for random
    directions, 0 if all embeddings are the same."""
    unit = F.normalize(embeddings_NxP.detach().float(), dim=1)
    return unit.std(dim=0).mean() * unit.shape[1] ** 0.5


def effective_rank(embeddings_NxP: Tensor) -> Tensor:
    """Returns in how many directions embeddings differ: 1 if they lie on a line.

    This is the participation ratio (Σλ)² / Σλ² of the eigenvalues λ of their covariance. It is computed
    from the first 256 embeddings, which are enough.
    """
    unit = F.normalize(embeddings_NxP[:256].detach().float(), dim=1)
    centred = unit - unit.mean(0)
    gram_NxN = centred @ centred.T  # Its eigenvalues are those of the covariance, times a constant.
    return gram_NxN.trace() ** 2 / gram_NxN.square().sum().clamp(min=1e-12)


def health(embeddings_NxP: Tensor) -> dict[str, Tensor]:
    """Returns the values to log in each step that show a collapse of embeddings, of two views of each
    image (see `collapse`)."""
    embeddings_NxP = whole(embeddings_NxP.detach(), views=2)
    values = {"spread": embedding_std(embeddings_NxP)}
    if len(embeddings_NxP) >= FEWEST_EMBEDDINGS:
        values["directions"] = effective_rank(embeddings_NxP)
    return values


def collapse(row: dict[str, float]) -> str:
    """Returns what has collapsed according to a row of a training log, "" if nothing has."""
    if row.get("spread", 1.0) < LEAST_STD:
        return (
            f"embeddings have collapsed to {row['spread']:.0%} of the standard deviation of random "
            "directions"
        )
    if row.get("directions", np.inf) < LEAST_EFFECTIVE_RANK:
        return f"embeddings have collapsed to a line, an effective rank of {row['directions']:.2f}"
    if row.get("alive", 1.0) < LEAST_ALIVE:
        return f"only {row['alive']:.1%} of the counts are ever above zero"
    return ""


def collapse_summary(rows: list[dict[str, float]]) -> str:
    """Returns at which steps of a training log there was a collapse, and whether there is one at the
    end; "" if there was none."""
    steps = [int(row["step"]) for row in rows if collapse(row)]
    if not steps:
        return ""
    ending = f"At the end, {wrong}" if (wrong := collapse(rows[-1])) else "It was over before the end"
    return f"A collapse was seen from step {steps[0]:,} to step {steps[-1]:,}. {ending}."
