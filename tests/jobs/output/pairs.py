"""Pairs of programs whose schedules are explored."""

from itertools import combinations_with_replacement

MAIN = ("label", "relabel", "compact", "delete")
PAIRS = list(combinations_with_replacement(MAIN, 2))
