"""Pairs of boxes of two labellings that show the same object.

Pairs are taken from the greatest overlap down, first among boxes of the same class, then among the
rest. A box that did not move therefore always pairs with itself. (An assignment with the greatest
sum of overlaps would separate two equal boxes to give each of them a neighbour.) Among equal
overlaps, the pair with the nearest scores comes first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 1 << 20  # pairs whose overlap is computed at once, which takes about 100 MB
# Pairs of an image that meet in x, beyond which it is crowded. At most as many are kept at once.
MOST_MEETINGS = 10_000_000
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Boxes:
    """Boxes of some images."""

    image: Ints  # (N,) image numbers, ascending
    kind: Ints  # (N,) class numbers
    score: Floats  # (N,)
    box: Floats  # (N, 4) x_min, y_min, x_max, y_max

    def __len__(self) -> int:
        return len(self.image)

    def select(self, rows: Any) -> "Boxes":
        """Select some boxes, by a slice or a mask."""
        return Boxes(self.image[rows], self.kind[rows], self.score[rows], self.box[rows])


@dataclass(frozen=True)
class Pairs:
    """Pairs of boxes, by their index on each side; `same` is true where the class is the same."""

    left: Ints  # (P,)
    right: Ints  # (P,)
    overlap: Floats  # (P,) IoU
    same: NDArray[np.bool_]  # (P,)

    def select(self, rows: NDArray[Any]) -> "Pairs":
        """Select some pairs, by index or mask."""
        return Pairs(self.left[rows], self.right[rows], self.overlap[rows], self.same[rows])


NO_PAIRS = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0, bool))


class Crowded(Exception):
    """Some images have too many boxes upon one another to be paired.

    A model finds some hundred boxes. Ten thousand in the many tiles of an image meet in a million
    pairs, three thousand equal ones in nine.
    """

    def __init__(self, images: Ints):
        """`images` are their numbers."""
        super().__init__(images)
        self.images = images


def pair_boxes(left: Boxes, right: Boxes, least: float) -> Pairs:
    """Pair boxes of the same image whose IoU is `least` or more.

    Each box is in one pair at most. Raises Crowded.
    """
    sweep = _sweep_in_x(left, right)
    images, meetings = _count_meetings(left, right, sweep)
    if len(crowded := images[meetings > MOST_MEETINGS]):
        raise Crowded(crowded)
    if meetings.sum() <= MOST_MEETINGS:
        return _pair_at_once(left, right, least, sweep)
    parts = []
    group = np.cumsum(meetings) // MOST_MEETINGS
    firsts = images[np.unique(group, return_index=True)[1]]
    i, j = (np.append(np.searchsorted(side.image, firsts), len(side)) for side in (left, right))
    for number in range(len(firsts)):
        of_left, of_right = (slice(k[number], k[number + 1]) for k in (i, j))
        found = pair_boxes(left.select(of_left), right.select(of_right), least)
        parts.append(
            Pairs(found.left + i[number], found.right + j[number], found.overlap, found.same)
        )
    return _concatenate(parts)


def _pair_at_once(left: Boxes, right: Boxes, least: float, sweep: "_Sweep") -> Pairs:
    near = _find_candidates(left, right, least, sweep)
    drift = np.abs(left.score[near.left] - right.score[near.right])
    near = near.select(np.lexsort((near.right, near.left, drift, -near.overlap)))
    same = _take_in_order(near.select(near.same))
    taken = np.isin(near.left, same.left) | np.isin(near.right, same.right)
    return _concatenate([same, _take_in_order(near.select(~near.same & ~taken))])


def overlaps(a: Floats, b: Floats) -> Floats:
    """IoU (N,) of boxes (N, 4) with boxes (N, 4). Equal boxes have 1, even if they are empty."""
    width, height = (
        np.maximum(np.minimum(a[:, i + 2], b[:, i + 2]) - np.maximum(a[:, i], b[:, i]), 0)
        for i in (0, 1)
    )
    both = width * height
    union = _area(a) + _area(b) - both
    iou = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return np.where((a == b).all(axis=1), 1.0, iou)


def _area(boxes: Floats) -> Floats:
    area: Floats = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area


def _find_candidates(left: Boxes, right: Boxes, least: float, sweep: "_Sweep") -> Pairs:
    """Find all pairs within an image that overlap enough, computing `AT_ONCE` at a time."""
    parts: list[Pairs] = []
    for i, j in _meeting_pairs(sweep):
        overlap = overlaps(left.box[i], right.box[j])
        all_pairs = Pairs(i, j, overlap, left.kind[i] == right.kind[j])
        parts.append(all_pairs.select(overlap >= least))
    return _concatenate(parts)


def _count_meetings(left: Boxes, right: Boxes, sweep: "_Sweep") -> tuple[Ints, Ints]:
    """The numbers (I,) of all images, ascending, and how many pairs of each meet in x."""
    images = np.union1d(left.image, right.image)
    meetings = np.zeros(len(images))
    for side, (first, stop) in zip((left, right), sweep.meetings, strict=True):
        place = np.searchsorted(images, side.image)
        meetings += np.bincount(place, stop - first, len(images))
    return images, meetings.astype(np.int64)


def _meeting_pairs(sweep: "_Sweep") -> Iterator[tuple[Ints, Ints]]:
    """Yield the pairs of a sweep, `AT_ONCE` at a time."""
    for i, place in _in_ranges(*sweep.meetings[0]):
        yield i, sweep.orders[1][place]
    for j, place in _in_ranges(*sweep.meetings[1]):
        yield sweep.orders[0][place], j


@dataclass(frozen=True)
class _Sweep:
    """Which boxes of the other side start within each box."""

    orders: Sequence[Ints]  # the boxes of each side in the order in which they start
    # Of each box of a side: the first place in the other side's order, and the one behind the last.
    meetings: Sequence[tuple[Ints, Ints]]


def _sweep_in_x(left: Boxes, right: Boxes) -> _Sweep:
    """Find the pairs within an image that overlap in x or start at one x, each once.

    The box that starts later starts within the other one. Of 10,000 boxes of an image of many tiles
    these are few of all pairs: `pair_boxes` takes 0.3 s of a CPU in place of 21 (2026-11-28).
    """
    sides = left, right
    known = np.unique(np.concatenate([side.box[:, [0, 2]].ravel() for side in sides]))

    def places(side: Boxes, corner: int) -> Ints:
        """The places of a corner's x in the order of images, and within an image of x."""
        return side.image * (len(known) + 1) + np.searchsorted(known, side.box[:, corner])

    starts = [places(side, 0) for side in sides]
    stops = [np.maximum(places(side, 2), start) for side, start in zip(sides, starts, strict=True)]
    orders = [np.argsort(start, kind="stable") for start in starts]
    starts_in_order = [start[order] for start, order in zip(starts, orders, strict=True)]
    meetings = [
        (
            np.searchsorted(starts_in_order[1 - own], starts[own], "right" if own else "left"),
            np.searchsorted(starts_in_order[1 - own], stops[own], "right"),
        )
        for own in (0, 1)
    ]
    return _Sweep(orders, meetings)


def _in_ranges(first: Ints, stop: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield the numbers of ranges [first, stop), and the integers in them, `AT_ONCE` at a time."""
    counts = stop - first
    ends = np.cumsum(counts)
    for begin in range(0, int(ends[-1]) if len(ends) else 0, AT_ONCE):
        number = np.arange(begin, min(begin + AT_ONCE, int(ends[-1])))
        which = np.searchsorted(ends, number, "right")
        yield which, first[which] + number - (ends[which] - counts[which])


def _concatenate(parts: list[Pairs]) -> Pairs:
    names = ("left", "right", "overlap", "same")
    return Pairs(
        *(np.concatenate([getattr(p, name) for p in (NO_PAIRS, *parts)]) for name in names)
    )


def _take_in_order(pairs: Pairs) -> Pairs:
    """Take each pair, in the given order, whose boxes no earlier pair has taken.

    This runs on whole arrays: each round takes every pair that comes first for both of its boxes,
    and removes the pairs that share a box with one of these, until none is left. Where a round
    removes few, as of equal boxes, the rest is taken one by one.
    """
    taken = [NO_PAIRS]
    while len(pairs.left):
        count = len(pairs.left)
        first = np.zeros(len(pairs.left), np.int64)
        for side in (pairs.left, pairs.right):
            first[np.unique(side, return_index=True)[1]] += 1
        taken.append(pairs.select(first == 2))
        gone = np.isin(pairs.left, taken[-1].left) | np.isin(pairs.right, taken[-1].right)
        pairs = pairs.select(~gone)
        if len(pairs.left) > count // 2:
            return _concatenate([*taken, _take_one_by_one(pairs)])
    return _concatenate(taken)


def _take_one_by_one(pairs: Pairs) -> Pairs:
    """Take as `_take_in_order` does."""
    left, right, places = set[int](), set[int](), []
    for place, (i, j) in enumerate(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)):
        if i not in left and j not in right:
            left.add(i)
            right.add(j)
            places.append(place)
    return pairs.select(np.array(places, np.int64))
