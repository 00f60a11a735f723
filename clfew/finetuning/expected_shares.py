"""The share that each class is expected to have of all images: the prior of label propagation, of what
cross-validation is worth, and of calibration.

Images that were labelled at random show it, and so do labels drawn as a share of each class. Images that
were chosen, and labels drawn per class, do not: how many of them a class has is not how many there are.

Shape suffixes: L labelled images, C classes.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clfew import console


@dataclass(frozen=True)
class ExpectedShares:
    """Unequal shares of the classes.

    share, low, high: float64 (C,), the expected shares, which add up to 1, and their 95 % intervals; the
    ends are the share where it is given. origin: where they come from, in words. is_in_labels: whether
    the labels have about these shares, so that what is fitted to them has them already.
    """

    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    origin: str
    is_in_labels: bool

    def of(self, present: np.ndarray) -> "ExpectedShares":
        """Returns the shares of some classes among the images of these."""
        total = self.share[present].sum()
        parts = (each[present] / total for each in (self.share, self.low, self.high))
        return replace(self, **dict(zip(("share", "low", "high"), parts, strict=True)))

    def words(self, classes: list[str], most: int = 8) -> str:
        """Returns the shares in words, largest first, with the intervals of those that have one."""
        order = np.argsort(-self.share, kind="stable")
        shown = []
        for c in order[:most]:
            text = f"{console.printable(classes[c])} {per_cent(self.share[c])} %"
            if self.low[c] < self.high[c]:
                text += f" ({per_cent(self.low[c])} to {per_cent(self.high[c])} %)"
            shown.append(text)
        more = f", and {len(order) - most} more" if len(order) > most else ""
        return f"{', '.join(shown)}{more}, {self.origin}"

    def as_row(self, classes: list[str]) -> dict[str, Any]:
        """Returns the part that results and artifacts keep (see `shares_from`)."""
        ends = {name: getattr(self, name).tolist() for name in ("share", "low", "high")}
        known = {"origin": self.origin, "is_in_labels": self.is_in_labels, "classes": classes}
        return known | ends


def shares_from(row: dict[str, Any] | None) -> ExpectedShares | None:
    """Returns the shares that `as_row` made a row of; None for none."""
    if row is None:
        return None
    share, low, high = (np.array(row[name], float) for name in ("share", "low", "high"))
    return ExpectedShares(share, low, high, row["origin"], row["is_in_labels"])


def per_cent(share: float) -> str:
    """Returns a share in per cent, with a decimal below ten."""
    value = 100 * float(share)
    return f"{value:.0f}" if value >= 9.95 or value == 0 else f"{value:.1f}".removesuffix(".0")


def given_shares(shares: list[float]) -> ExpectedShares:
    """Returns shares that a user knows."""
    share = np.asarray(shares, float)
    return ExpectedShares(share, share, share, "as given", False)


def shares_of_labels(counts_C: np.ndarray, origin: str, images: int | None = None) -> ExpectedShares:
    """Returns what labels of a random sample say of the shares: the mean of the posterior after
    Jeffreys's prior, and each class's exact interval (Clopper and Pearson 1934), which covers in at
    least 95 of 100 samples.

    counts: of each class among the labels. images: of how many images they are a sample; where they are
    all of them, nothing is uncertain.
    """
    from scipy.stats import beta

    total = int(counts_C.sum())
    if images is not None and total >= images:
        share = counts_C / total
        return ExpectedShares(share, share, share, origin, True)
    more = 0.5
    share = (counts_C + more) / (counts_C + more).sum()
    # The quantiles of beta distributions are not numbers where there is no label, or no other.
    with np.errstate(invalid="ignore"):
        low = np.nan_to_num(beta.ppf(0.025, counts_C, total - counts_C + 1), nan=0.0)
        high = np.nan_to_num(beta.ppf(0.975, counts_C + 1, total - counts_C), nan=1.0)
    return ExpectedShares(share, np.minimum(low, share), np.maximum(high, share), origin, True)


def shares_of_each_class(counts_C: np.ndarray, origin: str) -> ExpectedShares:
    """Returns what labels say of the shares that were drawn as the same fraction of each class, rounded,
    at least one: the shares that the numbers before rounding allow."""
    least = np.where(counts_C > 1, counts_C - 0.5, 0.0) * (counts_C > 0)
    most = (counts_C + 0.5) * (counts_C > 0)
    middle = (least + most) / 2
    low = least / np.maximum(least + most.sum() - most, 1e-12)
    high = most / np.maximum(most + least.sum() - least, 1e-12)
    return ExpectedShares(middle / middle.sum(), low, high, origin, True)


def contradict_equal(counts_C: np.ndarray) -> bool:
    """Returns whether labels of a random sample contradict that all classes of which there are any are
    equally frequent (Pearson's chi-squared test at 1 %: equal ones that are taken to be unequal cost
    more than a little inequality that is not seen)."""
    from scipy.stats import chisquare

    counts = counts_C[counts_C > 0]
    return len(counts) > 1 and float(chisquare(counts).pvalue) < 0.01


def are_unequal(shares: ExpectedShares, present: np.ndarray) -> bool:
    """Returns whether the intervals of the classes that have labels rule out that these are equally
    frequent."""
    equal = 1 / len(present)
    return bool(((shares.low[present] > equal) | (shares.high[present] < equal)).any())
