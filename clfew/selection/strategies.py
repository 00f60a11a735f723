"""The ways to choose images to label, and which one is taken where none is asked for."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clfew.selection.asked import AUTO, HERDING, RANDOM, TYPICLUST, UNCERTAIN
from clfew.selection.classifier import Probabilities, uncertainty_of
from clfew.selection.clusters import typical
from clfew.selection.herding import herded, reference_of
from clfew.selection.pool import Pool, Turns, taken_in_order, to_cover

POWER = 2
"""Of the kernel (see `codes.kernel`), which is then about a Gaussian kernel with σ = 1.4. Of 1, 2 and 4
(σ = 1, as in the paper), the mean accuracy of hand signs, aerial photographs and clothes was .660, .659
and .660 with as many labels as classes, .729, .744 and .735 with twice and .780, .787 and .777 with five
times as many; the balanced accuracy with a tail of rare classes .436, .439 and .425; .544, .538 and
.535; .613, .617 and .606 (held-out parts of the training splits, means of five draws). Exchanging chosen
images for better ones gained nothing."""

KNOWN = 0.25
"""What an image to cover counts of which the classifier is certain; one of which it is in full doubt
counts 1. With the paper's 0 a classifier of few labels, which is certain of classes that it has not
seen, leads astray: on aerial photographs with 20 labels the accuracy was .726 with 0, .748 with 0.25,
.773 with 0.5 and .765 with 1, which is to cover without a classifier; with 50 labels .873, .868, .868
and .859. On hand signs it was .648, .654, .631 and .624, and .713, .702, .699 and .682 (POWER 4;
held-out parts of the training splits, means of five draws)."""

REASONS = {
    HERDING: "images that cover the pool",
    TYPICLUST: "typical images of clusters",
    UNCERTAIN: "images that cover where the classifier is uncertain",
    RANDOM: "at random",
}

WHY_COLD = "on four sets about as good as typiclust, and better on unequal classes"
WHY_WARM = "on four sets better than without a classifier"

_CHUNK = 8192


@dataclass(frozen=True)
class Question:
    """What is asked for: `budget` images of the free rows of a pool.

    free: int64, rows of the pool that may be chosen, in a random order. labelled: int64, rows of the
    images that are in the list already, to learn from. asked: int64, the groups of these. codes: returns
    the codes of some rows of the pool; None where the strategy needs none. probabilities: of the
    classifier of the labels so far, None while there is none. seed: of random choices.
    """

    pool: Pool
    free: np.ndarray
    labelled: np.ndarray
    asked: np.ndarray
    budget: int
    seed: int
    codes: Callable[[np.ndarray], np.ndarray] | None = None
    probabilities: Probabilities | None = None

    def turns(self) -> Turns:
        return Turns(self.pool.groups[self.free], self.asked)


def resolved(strategy: str, has_classifier: bool) -> str:
    """Returns the strategy that is taken where "auto" is asked for."""
    if strategy != AUTO:
        return strategy
    return UNCERTAIN if has_classifier else HERDING


def reason_of(asked: str, strategy: str) -> str:
    """Returns in words why a strategy was taken. asked: the one that the user named."""
    why = {HERDING: WHY_COLD, UNCERTAIN: WHY_WARM}.get(strategy, "")
    return REASONS[strategy] + (f"; {why}" if asked == AUTO and why else "; as asked for")


def chosen(question: Question, strategy: str) -> np.ndarray:
    """Returns the rows of the pool to label, int64, the first one first. strategy: one of STRATEGIES but
    "auto"; "uncertain" needs a classifier."""
    free, pool, turns = question.free, question.pool, question.turns()
    if strategy == RANDOM:
        return free[taken_in_order(np.arange(len(free)), question.budget, turns)]
    assert question.codes is not None
    codes, labelled = question.codes(free), question.codes(question.labelled)
    if strategy == TYPICLUST:
        sample = to_cover(pool.groups[free])
        return free[typical(codes, sample, labelled, question.budget, question.seed, turns)]
    both = np.concatenate([free, question.labelled])
    covered = both[to_cover(pool.groups[both])]
    of_covered, uncertainty = question.codes(covered), None
    if strategy == UNCERTAIN:
        assert question.probabilities is not None
        uncertainty = uncertainty_of(question.probabilities(of_covered))
        uncertainty = KNOWN + (1 - KNOWN) * uncertainty
        uncertainty[np.isin(covered, question.labelled)] = 0
    reference = reference_of(of_covered, labelled, POWER, uncertainty)
    return free[herded(codes, reference, question.budget, turns)]


def likeliest(question: Question, label: int) -> np.ndarray:
    """Returns the free rows that the classifier takes most for a class, at most `budget`, likeliest
    first."""
    assert question.codes is not None and question.probabilities is not None
    free = question.free
    parts = [
        question.probabilities(question.codes(free[start : start + _CHUNK]))[:, label]
        for start in range(0, len(free), _CHUNK)
    ]
    # Rounded, so that the order is the same on every machine; where it is equal, it is random.
    order = np.argsort(-np.round(np.concatenate(parts), 6), kind="stable")
    return free[taken_in_order(order, question.budget, question.turns())]
