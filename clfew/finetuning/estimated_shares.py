"""The shares of classes among images without labels, estimated from what a classifier answers on them.

Labels that were chosen, or drawn per class, do not show how many images a class has. A classifier's
answers do, once it is known how often it takes which class for which (label shift: an image of a class
looks the same among the labels as elsewhere). That is counted on labels that were held out, with its
uncertainty (Saerens, Latinne and Decaestecker, Adjusting the Outputs of a Classifier to New a Priori
Probabilities, Neural Computation 2002, by their algorithm; Lipton, Wang and Smola, Detecting and
Correcting for Label Shift, ICML 2018, by the confusion matrix).

Shape suffixes: N images, D features, L labelled images, C classes, J predicted classes.
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import softmax

from clfew.finetuning.expected_shares import ExpectedShares
from clfew.finetuning.fit import Task
from clfew.finetuning.probes import FEW_LABELS, equal_weights, folds, logistic, mean_and_std, unit

ENDS = 0.01, 0.99
"""The quantiles between which a share is expected. Folds have labels in common, so that the posterior is
a little too narrow: between its quantiles of .025 and .975 were 90 to 99 % of the true shares of
made-up clusters (ten settings of 60 sets, 2 to 10 classes), between these 92 to 99 %."""

POSTERIOR = 400
"""So many confusion matrices are drawn from what the held-out labels leave open."""

ROUNDS = 300
"""Of expectation maximisation: a share that is 0 is approached slowly."""

ORIGIN = "estimated from the classifier's answers"


def estimated_shares(task: Task, labelled: np.ndarray, seed: int) -> ExpectedShares | None:
    """Returns the expected shares as far as they are certain: those within the intervals that are
    nearest to equal ones. None where equal shares are not ruled out, and where no label of some class
    can be held out."""
    assert task.features is not None
    labels = task.labels[labelled]
    present = np.unique(labels)
    drawn = drawn_shares(task, labelled, seed)
    if drawn is None or not rule_out_equal(drawn):
        return None
    low, high = np.quantile(drawn, ENDS, axis=0)
    ends = [np.zeros(task.classes) for _ in range(3)]
    for end, values in zip(ends, (np.clip(1 / len(present), low, high), low, high), strict=True):
        end[present] = values
    share = ends[0] / ends[0].sum()
    return ExpectedShares(share, np.minimum(ends[1], share), np.maximum(ends[2], share), ORIGIN, False)


def drawn_shares(task: Task, labelled: np.ndarray, seed: int) -> np.ndarray | None:
    """Returns shares in the pool of the classes that have labels, (POSTERIOR, C), each as likely as the
    other; None where no label of some class can be held out."""
    _, labels = np.unique(task.labels[labelled], return_inverse=True)
    counted = _counted(task, labelled, labels, seed) if labels.max() else None
    if counted is None:
        return None
    # Of a rare class, a good part may have labels: what is estimated are the shares among the others.
    rest, known_C = 1 - len(labelled) / len(task.pool), np.bincount(labels) / len(task.pool)
    return rest * posterior_of_shares(*counted, seed) + known_C


def _counted(
    task: Task, labelled: np.ndarray, labels_L: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns how often held-out labels of each class were predicted as which, (C, J), and the fraction
    of the other images of the pool that is predicted as which, (J,), by the same classifiers."""
    classes = int(labels_L.max()) + 1
    confusion_CxJ, predicted_J = np.zeros((classes, classes)), np.zeros(classes)
    for held_out, own, others in _outputs_of_folds(task, labelled, labels_L, seed):
        np.add.at(confusion_CxJ, (labels_L[held_out], own.argmax(1)), 1)
        predicted_J += np.bincount(others.argmax(1), minlength=classes)
    return (confusion_CxJ, predicted_J / predicted_J.sum()) if predicted_J.any() else None


def predicted_in_folds(
    task: Task, labelled: np.ndarray, labels_L: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the probabilities of the labels, (L, C), by classifiers that were not fitted to them, and
    the mean of those of the whole pool, (C,), by the same classifiers; None where none can be held out.
    labels: the class of each, counted from 0 among those that have labels."""
    classes = int(labels_L.max()) + 1
    own_LxC, sum_C, count = np.zeros((len(labels_L), classes)), np.zeros(classes), 0
    for held_out, own, others in _outputs_of_folds(task, labelled, labels_L, seed):
        own_LxC[held_out] = softmax(own, axis=1)
        sum_C += softmax(others, axis=1).sum(0)
        count += len(others)
    if not count:
        return None
    rest = 1 - len(labelled) / len(task.pool)
    return own_LxC, rest * sum_C / count + (1 - rest) * own_LxC.mean(0)


def _outputs_of_folds(
    task: Task, labelled: np.ndarray, labels_L: np.ndarray, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the labels of a fold, their logits and those of the images of the pool without labels, of a
    classifier fitted to the other folds; nothing where none can be held out, or all have labels."""
    assert task.features is not None
    mean, _ = mean_and_std(task.features, task.is_scaled)
    inputs_NxD = unit(task.features[: len(task.pool)] - mean)
    rows_L = np.searchsorted(task.pool, labelled)
    rest = np.setdiff1d(np.arange(len(task.pool)), rows_L)
    if not len(rest):
        return
    for fitted, held_out in folds(labels_L, seed, groups_L=task.groups_of(labelled)):
        each = labels_L[fitted]
        # As if all classes had as many labels: what is rare among the labels may be frequent elsewhere.
        weight, bias = logistic(
            inputs_NxD[rows_L[fitted]],
            each,
            FEW_LABELS[1],
            int(labels_L.max()) + 1,
            equal_weights(each),
        )
        own = inputs_NxD[rows_L[held_out]] @ weight.T + bias
        yield held_out, own, inputs_NxD[rest] @ weight.T + bias


def posterior_of_shares(confusion_CxJ: np.ndarray, predicted_J: np.ndarray, seed: int) -> np.ndarray:
    """Returns shares that are as likely as not to be those of the classes, (POSTERIOR, C).

    confusion: how often held-out labels of each class were predicted as which. predicted: the fraction
    of the images without labels that is predicted as which.
    """
    random, classes = np.random.default_rng(seed), len(confusion_CxJ)
    # Before any label was held out, all rates are as likely (Perks, 1947: one label of each class).
    before_CxJ = np.full((classes, classes), 1 / classes)
    rates = [random.dirichlet(row_J, POSTERIOR) for row_J in confusion_CxJ + before_CxJ]
    return shares_that_explain(predicted_J, np.stack(rates, axis=1))


def rule_out_equal(drawn_PxC: np.ndarray) -> bool:
    """Returns whether equal shares are further from the middle of drawn ones than 95 % of these, each
    class measured by its own standard deviation."""
    middle, std = drawn_PxC.mean(0), drawn_PxC.std(0).clip(1e-6)
    reach = np.quantile(np.abs((drawn_PxC - middle) / std).max(1), 0.95)
    return bool(np.abs((1 / drawn_PxC.shape[1] - middle) / std).max() > reach)


def shares_that_explain(predicted_J: np.ndarray, rates_PxCxJ: np.ndarray) -> np.ndarray:
    """Returns the shares of the classes with which the predictions are likeliest, (P, C), by expectation
    maximisation. rates: P times, how often an image of each class is predicted as which."""
    share_PxC = np.full(rates_PxCxJ.shape[:2], 1 / rates_PxCxJ.shape[1])
    for _ in range(ROUNDS):
        explained_PxJ = predicted_J / np.einsum("pc,pcj->pj", share_PxC, rates_PxCxJ).clip(1e-12)
        share_PxC = share_PxC * np.einsum("pcj,pj->pc", rates_PxCxJ, explained_PxJ)
        share_PxC = share_PxC / share_PxC.sum(1, keepdims=True)
    return share_PxC
