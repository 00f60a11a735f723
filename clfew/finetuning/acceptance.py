"""What may be accepted unseen: of which images a classifier is so sure that a promise of their accuracy
can be kept, from a random test sample.

The images of the sample are put in order, surest first. That the M surest are right often enough is
shown by the exact binomial bound, and tried for one M after the other, until it is not shown for the
first time (fixed-sequence testing: no correction for many tests is needed; Maurer, Hothorn and
Lehmacher 1995; Angelopoulos et al., Learn Then Test, 2021). The confidence of the image after these is
the threshold: given it, the M are a random sample of all images of which the classifier is surer. So the
promise holds in 95 of 100 repetitions with another sample.
"""

import math
from typing import Any, NamedTuple

import numpy as np

DOUBT = 0.05
"""In so many repetitions the promise may fail."""


class Acceptance(NamedTuple):
    """From which confidence on images may be accepted.

    threshold: images of which the classifier is surer may be, 0 for all. fraction: of the sample that
    they are.
    right, images: how many of these are right.
    """

    threshold: float
    fraction: float
    right: int
    images: int


def fewest_images(accuracy: float) -> int:
    """Returns how many test images a promise of this accuracy needs, if all of them are right: 59 for
    .95."""
    return math.ceil(math.log(DOUBT) / math.log(accuracy) - 1e-9)


def accepted(confidence_N: np.ndarray, is_right_N: np.ndarray, accuracy: float) -> Acceptance | None:
    """Returns what may be accepted so that at least the fraction `accuracy` of it is right; None where
    that can be promised of nothing.

    confidence, is_right: of a random sample of test images, one of each group. accuracy: between 0 and
    1, both excluded. The sequence begins with a third of the sample, and at least `fewest_images`: with
    fewer, one mistake would end it.
    """
    from scipy.stats import binom

    total = len(confidence_N)
    order = np.argsort(-confidence_N, kind="stable")
    # After the last image there is none: whatever is less sure is accepted with it.
    sorted_N, right_N = np.append(confidence_N[order], 0.0), is_right_N[order].astype(bool).cumsum()
    found = None
    for count in range(max(fewest_images(accuracy), math.ceil(total / 3)), total + 1):
        threshold = float(sorted_N[count])
        if sorted_N[count - 1] == threshold:
            continue  # Images of the same confidence are accepted together, or not.
        right = int(right_N[count - 1])
        if binom.sf(right - 1, count, accuracy) > DOUBT:
            break
        found = Acceptance(threshold, count / total, right, count)
    return found


def acceptance_row(
    why_not: str, confidence_N: np.ndarray, is_right_N: np.ndarray, accuracy: float
) -> dict[str, Any]:
    """Returns what may be accepted unseen (see `accepted`): `accuracy`, the one promised; `fraction` of
    the images, None for none; `threshold`, `right` and `images`; and `why` it is none, in words.
    why_not: why the test images promise nothing, "" if they are a random sample."""
    row: dict[str, Any] = {"accuracy": accuracy, "fraction": None}
    if why_not:
        return row | {"why": why_not}
    total, fewest = len(is_right_N), fewest_images(accuracy)
    if total < fewest:
        return row | {"why": f"{fewest} test images are needed to show that, and there are {total}"}
    found = accepted(confidence_N, is_right_N, accuracy)
    if found is None:
        return row | {"why": "the test images do not show that of the surest third"}
    return row | found._asdict()
