"""The metric that a classifier is chosen by, of held-out labels, and whether it is clearly better.

Shape suffixes: L labelled images, C classes, R repetitions.
"""

from dataclasses import dataclass

import numpy as np

from clfew.finetuning.asked import ACCURACY, AUTO, AVERAGE_PRECISION, BALANCED, MACRO_F1, number_of

REPETITIONS = 2000
"""So many times it is drawn which of two choices an output belongs to (see `win_by_exchange`)."""


@dataclass(frozen=True)
class Metric:
    """What classifiers are chosen by. name: "accuracy", "balanced", "macro-f1" or "ap:CLASS". number:
    that of this class."""

    name: str = ACCURACY
    number: int = -1

    @property
    def is_balanced(self) -> bool:
        """Whether a label counts as if all classes were equally frequent."""
        return self.name == BALANCED

    @property
    def is_accuracy(self) -> bool:
        """Whether it is the fraction of the labels that are predicted, however each of them counts."""
        return self.name in (ACCURACY, BALANCED)

    def outputs(self, logits_LxC: np.ndarray) -> np.ndarray:
        """Returns what the metric looks at, (L,): the predicted class of each image, or its place in the
        order of the probability of the class."""
        if not self.name.startswith(AVERAGE_PRECISION):
            predicted: np.ndarray = logits_LxC.argmax(1)
            return predicted
        from scipy.special import log_softmax
        from scipy.stats import rankdata

        ranks: np.ndarray = rankdata(log_softmax(logits_LxC, axis=1)[:, self.number])
        return ranks

    def of(self, outputs_RxL: np.ndarray, labels_L: np.ndarray, weights_L: np.ndarray) -> np.ndarray:
        """Returns the metric (R,) of several sets of outputs for the same labels."""
        if self.name == MACRO_F1:
            return macro_f1(outputs_RxL, labels_L, weights_L)
        if self.name.startswith(AVERAGE_PRECISION):
            return average_precision(outputs_RxL, labels_L == self.number, weights_L)
        return (outputs_RxL == labels_L) @ weights_L / weights_L.sum()


BY_ACCURACY = Metric()


def macro_f1(predicted_RxL: np.ndarray, labels_L: np.ndarray, weights_L: np.ndarray) -> np.ndarray:
    """Returns the mean over the classes that have labels of the harmonic mean of precision and recall,
    (R,); it is 0 for a class that is never predicted."""
    of_classes = []
    for c in np.unique(labels_L):
        weighted_L = np.where(labels_L == c, weights_L, 0.0)
        is_predicted = predicted_RxL == c
        both = is_predicted @ weights_L + weighted_L.sum()
        of_classes.append(2 * (is_predicted @ weighted_L) / both)
    found: np.ndarray = np.mean(of_classes, axis=0)
    return found


def average_precision(
    ranks_RxL: np.ndarray, is_class_L: np.ndarray, weights_L: np.ndarray
) -> np.ndarray:
    """Returns the mean over the images of a class of the precision among those that rank at least as
    high, (R,); 0 where there are none. Images of one rank are taken in their order."""
    order_RxL = np.argsort(-ranks_RxL, axis=1, kind="stable")
    weights_RxL = weights_L[order_RxL]
    found_RxL = np.where(is_class_L[order_RxL], weights_RxL, 0.0)
    precision_RxL = found_RxL.cumsum(1) / weights_RxL.cumsum(1)
    means: np.ndarray = (found_RxL * precision_RxL).sum(1) / found_RxL.sum(1).clip(1e-12)
    return means


def win_by_exchange(
    metric: Metric,
    outputs_L: np.ndarray,
    baseline_L: np.ndarray,
    labels_L: np.ndarray,
    weights_L: np.ndarray,
) -> float:
    """Returns the probability of a lead as large, or larger, if each image's two outputs were as likely
    to be exchanged: the paired randomisation test, for any metric (Yeh, More accurate tests for the
    statistical significance of result differences, COLING 2000)."""
    values = metric.of(np.stack([outputs_L, baseline_L]), labels_L, weights_L)
    lead = float(values[0] - values[1])
    if lead <= 0:
        return 1.0
    exchanged_RxL = np.random.default_rng(0).random((REPETITIONS, len(labels_L))) < 0.5
    one = metric.of(np.where(exchanged_RxL, baseline_L, outputs_L), labels_L, weights_L)
    other = metric.of(np.where(exchanged_RxL, outputs_L, baseline_L), labels_L, weights_L)
    return (int((one - other >= lead - 1e-9).sum()) + 1) / (REPETITIONS + 1)


def metric_of(asked: str, classes: list[str], are_unequal: bool) -> tuple[Metric, str]:
    """Returns the metric that is asked for (see `check_metric`), and why in words. By itself it is the
    accuracy; where classes are expected to have unequal shares, macro F1, as one that never names a rare
    class can be accurate. Raises UserError for a class that there is not."""
    named = asked.strip()
    if named == AUTO:
        if are_unequal:
            return Metric(MACRO_F1), "as classes have unequal shares; --metric accuracy counts images"
        return BY_ACCURACY, "as classes are taken to have equal shares"
    if not named.startswith(AVERAGE_PRECISION):
        return Metric(named), "as asked for"
    name = named.removeprefix(AVERAGE_PRECISION).strip()
    number = number_of(name, classes, "--metric")
    return Metric(f"{AVERAGE_PRECISION}{name}", number), "as asked for"
