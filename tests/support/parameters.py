"""Parameters of tests that take long."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(fast: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """All values, or tuples of values; tests with others than the `fast` ones are slow."""
    several = [(value, value if isinstance(value, tuple) else (value,)) for value in values]
    return [
        pytest.param(*parts, marks=() if value in fast else pytest.mark.slow)
        for value, parts in several
    ]


def others_slow(values: Iterable[Any]) -> list[Any]:
    """All values, or tuples of values; tests with others than the first are slow."""
    first, *others = values
    several = [value if isinstance(value, tuple) else (value,) for value in others]
    return [first, *(pytest.param(*value, marks=pytest.mark.slow) for value in several)]
