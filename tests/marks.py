"""Which tests run only where the marker `slow` is asked for: `pytest -m "slow or not slow"`."""

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
