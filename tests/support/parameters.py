"""Parameters of tests that take long."""

from collections.abc import Iterable
from typing import Any

import pytest


def others_slow(values: Iterable[Any]) -> list[Any]:
    """All values, or tuples of values; tests with others than the first are slow."""
    first, *others = values
    several = [value if isinstance(value, tuple) else (value,) for value in others]
    return [first, *(pytest.param(*value, marks=pytest.mark.slow) for value in several)]
