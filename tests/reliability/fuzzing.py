"""How long the tests of this folder search for input that makes them fail."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

THOROUGH = os.environ.get("CLFEW_THOROUGH") == "1"
SECONDS = 600


def fuzz(examples: int, holds: Callable[..., None], **values: SearchStrategy[Any]) -> None:
    """Calls `holds` with `examples` random values, the same in every run.

    With CLFEW_THOROUGH=1 it uses new values for ten minutes and prints how many there were.
    """
    options = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    if not THOROUGH:
        settings(max_examples=examples, derandomize=True, **options)(given(**values)(holds))()
        return
    tried = itertools.count()

    def counted(**drawn: Any) -> None:
        next(tried)
        holds(**drawn)

    for number in rounds():
        run = settings(max_examples=2000, **options)(given(**values)(counted))
        hypothesis.seed(number)(run)()
    print(f"{holds.__qualname__}: {next(tried):,} examples")


def rounds() -> Iterator[int]:
    """Yields 0, 1, 2, … for ten minutes if CLFEW_THOROUGH=1, otherwise only 0."""
    end = time.monotonic() + SECONDS
    for number in itertools.count():
        yield number
        if not THOROUGH or time.monotonic() > end:
            return
