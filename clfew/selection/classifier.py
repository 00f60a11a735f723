"""The classifier of the labels so far, which says where it is uncertain and where it sees a class.

It is fitted on the codes of a sample of the pool, as `finetune` fits one to frozen features.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import softmax

from clfew.data.cache_folder import ImageCache
from clfew.finetuning.asked import AUTO
from clfew.finetuning.calibration import fit_temperature, prior_of
from clfew.finetuning.find_shares import with_shares
from clfew.finetuning.fit import FullSettings, Task, fit_probe
from clfew.finetuning.metric import metric_of
from clfew.finetuning.model_selection import decide_probe, fitted_fraction, held_out_logits
from clfew.finetuning.probes import smallest_class
from clfew.finetuning.start import Start
from clfew.selection.codes import SCALE

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Known:
    """The images that have labels.

    images: int64 (L,), indices in the source. labels: int64 (L,), the class of each. classes: their
    names. hows: how each label came about.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: list[str]
    hows: list[str]


Probabilities = Callable[[np.ndarray], np.ndarray]
"""Returns the calibrated probabilities of the classes, (N, C), from codes, int16 (N, A)."""


def fit_to_codes(
    start: Start,
    cache: ImageCache,
    known: Known,
    images_S: np.ndarray,
    codes_SxA: np.ndarray,
    groups_N: np.ndarray,
    seed: int,
) -> tuple[Probabilities, str]:
    """Fits a classifier to the labels so far; returns it and how it was chosen, in words.

    images: indices in the source of a sample of the pool, with the labelled ones among them. codes: of
    these. groups: of all images of the source.
    """
    order = np.argsort(images_S)
    labels = np.full(len(groups_N), -1)
    labels[known.images] = known.labels
    features = codes_SxA[order].astype(np.float32) / SCALE
    task = Task(
        cache.pixels,
        cache.aspects,
        images_S[order],
        labels,
        len(known.classes),
        features,
        _CPU,
        "fp32",
        is_scaled=True,
        groups=groups_N,
    )
    order_L = np.argsort(known.images)
    labelled, settings = known.images[order_L], FullSettings()
    hows = [known.hows[i] for i in order_L]
    task, expected = with_shares(task, AUTO, known.classes, labelled, hows)
    metric, _ = metric_of(AUTO, known.classes, task.shares is not None)
    task = replace(task, metric=metric)
    decision = decide_probe(start, task, labelled, seed, settings)
    head, _ = fit_probe(decision.mode, task, labelled, seed)
    prior = prior_of(decision.mode, smallest_class(labels[labelled]))
    temperature = prior.temperature
    logits = held_out_logits(decision, start, task, labelled, seed, settings)
    if logits is not None:
        fraction = fitted_fraction(decision.mode, labels[labelled], task.groups_of(labelled))
        temperature = fit_temperature(
            logits, labels[labelled], prior, fraction, task.weights_of(labelled)
        )

    def probabilities(codes_NxA: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            outputs = head(torch.from_numpy(codes_NxA.astype(np.float32) / SCALE)).numpy()
        found: np.ndarray = softmax(outputs / temperature, axis=1)
        return found

    return probabilities, f"{decision.mode}, {decision.reason}; shares: {expected}"


def uncertainty_of(probabilities_NxC: np.ndarray) -> np.ndarray:
    """Returns one minus the margin of the likeliest class over the second, from 0 to 1 (N,)."""
    likeliest = np.partition(probabilities_NxC, -2, axis=1)[:, -2:]
    uncertainty: np.ndarray = 1 - (likeliest[:, 1] - likeliest[:, 0])
    return uncertainty
