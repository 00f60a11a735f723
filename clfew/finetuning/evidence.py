"""What the thresholds of a classifier are chosen by, kept in its artifact (see `read_evidence`)."""

from dataclasses import replace

import numpy as np
from scipy.special import softmax

from clfew.data.label_lists import RANDOM
from clfew.finetuning.fit import Task
from clfew.finetuning.metric import BY_ACCURACY


def evidence_of_test(
    task: Task, logits_TxC: np.ndarray | None, test: np.ndarray, origins: set[str]
) -> dict[str, np.ndarray]:
    """Returns how sure the classifier is of the test images, and whether it is right; nothing where they
    are no random sample. Images of a group are right or wrong together, and one of them counts.

    logits: calibrated. origins: how the labels came about of those that a list gives to test on; images
    that are held out of labelled ones are drawn at random.
    """
    if logits_TxC is None or not len(test) or not origins <= {RANDOM}:
        return {}
    if task.groups is not None:
        firsts = np.unique(task.groups[test], return_index=True)[1]
        test, logits_TxC = test[firsts], logits_TxC[firsts]
    right = logits_TxC.argmax(1) == task.labels[test]
    return {"test.confidence": softmax(logits_TxC, axis=1).max(1), "test.right": right}


def evidence_of_labels(
    task: Task, labelled: np.ndarray, probabilities_LxC: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Returns the calibrated probabilities of labels that were held out in turn, with their classes and
    how many images each stands for; nothing where none could be held out."""
    if probabilities_LxC is None:
        return {}
    # Images count, whatever metric the classifier was chosen by.
    weights = replace(task, metric=BY_ACCURACY).weights_of(labelled)
    return {
        "labels.probabilities": probabilities_LxC,
        "labels.classes": task.labels[labelled],
        "labels.weights": np.ones(len(labelled)) if weights is None else weights,
    }
