"""Which tests run only where the marker `slow` is asked for: `pytest -m "slow or not slow"`."""

import os
from collections.abc import Iterable
from typing import Any

import pytest


def rest_is_slow(values: Iterable[Any], count: int = 1) -> list[Any]:
    """Returns the values of a parametrized test. All but the first `count` are marked as slow: the same
    promise once more, for another method, mode or moment."""
    marked = []
    for number, value in enumerate(values):
        row = value if isinstance(value, tuple) else (value,)
        marked.append(pytest.param(*row, marks=[pytest.mark.slow] if number >= count else []))
    return marked


THOROUGH = pytest.mark.skipif(
    os.environ.get("CLFEW_THOROUGH") != "1", reason="takes a minute: CLFEW_THOROUGH=1 runs it"
)


def thorough(values: Iterable[Any]) -> list[Any]:
    """Returns the values of a parametrized test, which run with CLFEW_THOROUGH=1 only."""
    return [pytest.param(value, marks=[pytest.mark.slow, THOROUGH]) for value in values]
