"""The images that are worked on: which to ask for next, and what the classifier needs of them."""

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from clfew.data.label_lists import CHOSEN
from clfew.labelling.assistant import Assistant, Fit
from clfew.selection.asked import AUTO
from clfew.selection.pool import Pool
from clfew.selection.strategies import Question, chosen, resolved


@dataclass(frozen=True)
class Work:
    """The images that are worked on, N of them.

    pool: the images, one of each picture. rows: of each image of the source that shows one of these
    pictures, by its name. codes: int16 (N, A). tested: the names of the test sample, and tested_codes
    their codes, int16 (T, A). seed: of the order in which images are looked at.
    """

    pool: Pool
    rows: dict[str, int]
    codes: np.ndarray
    tested: list[str]
    tested_codes: np.ndarray
    seed: int

    @cached_property
    def names(self) -> list[str]:
        return [self.pool.identities[i] for i in self.pool.images]

    @cached_property
    def assistant(self) -> Assistant:
        """The classifier, whose graph takes seconds where there are many images."""
        return Assistant(self.codes, self.pool.groups, self.tested_codes)

    def ask(
        self, is_open_N: np.ndarray, labelled: np.ndarray, budget: int, fit: Fit | None
    ) -> tuple[list[str], str]:
        """Returns images to label, at most `budget`, and how they were chosen. labelled: rows of the
        images that have been asked. fit: the classifier so far, None without one."""
        order = self.pool.order(self.seed)
        free = order[is_open_N[order]]
        budget = min(budget, len(free))
        if not budget:
            return [], ""
        probabilities = None if fit is None else partial(self.assistant.probabilities_of, fit=fit)
        groups = np.unique(self.pool.groups[labelled])
        question = Question(
            self.pool, free, labelled, groups, budget, self.seed, self.codes.__getitem__, probabilities
        )
        strategy = resolved(AUTO, fit is not None)
        return [self.names[row] for row in chosen(question, strategy)], f"{CHOSEN} ({strategy})"
