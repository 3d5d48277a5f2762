"""Short names of images, by which people tell them apart."""

import re
from collections import Counter
from collections.abc import Iterable

from pipeline.storage.urls import printable

LONGEST = 72  # most characters of a short name; the middle of a longer one is left out
_SEPARATOR = re.compile(r"[/\\]")


def shorten_names(names: Iterable[str]) -> dict[str, str]:
    """Return for each name the shortest end of its path that no other of the names has.

    A name that is itself the end of another stays whole.
    """
    parts = {name: _SEPARATOR.split(printable(name).rstrip("/\\")) for name in set(names)}
    ends = Counter(
        tuple(path[-depth:]) for path in parts.values() for depth in range(1, len(path) + 1)
    )
    return {name: _abbreviate("/".join(_unique_end(path, ends))) for name, path in parts.items()}


def _unique_end(path: list[str], ends: Counter[tuple[str, ...]]) -> list[str]:
    for depth in range(1, len(path)):
        if ends[tuple(path[-depth:])] == 1:
            return path[-depth:]
    return path


def _abbreviate(name: str) -> str:
    if len(name) <= LONGEST:
        return name
    half = (LONGEST - 3) // 2
    return f"{name[:half]}...{name[-half:]}"
