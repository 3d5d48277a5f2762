"""Pairs of boxes that overlap are those that a comparison of all pairs finds."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from pipeline.stages import box_overlaps
from pipeline.stages.box_overlaps import overlapping_pairs


def random_boxes(rng: np.random.Generator, count: int) -> Any:
    """Boxes (count, 4), some of which have no area, are inverted, or are not finite."""
    corners = rng.integers(-5, 40, (count, 2))
    boxes = np.hstack([corners, corners + rng.integers(-2, 20, (count, 2))]).astype(np.float32)
    odd = rng.integers(0, max(count, 1), count // 8), rng.integers(0, 4, count // 8)
    boxes[odd] = rng.choice([np.nan, -np.nan, np.inf, -np.inf, -0.0], count // 8)
    return boxes


@np.errstate(invalid="ignore")
def is_near(a: Any, b: Any, iou: float) -> bool:
    width, height = (np.minimum(a[k + 2], b[k + 2]) - np.maximum(a[k], b[k]) for k in (0, 1))
    if not (width > 0 and height > 0):
        return False
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (a, b)]
    both = width * height
    return bool(both > np.float32(iou) * (areas[0] + areas[1] - both))


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("has_kinds", [False, True])
def test_pairs_are_those_of_a_comparison_of_all(
    iou: float, has_kinds: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_overlaps, "AT_ONCE", 60)
    rng = np.random.default_rng(seed)
    lengths = np.array([0, 40, 1, 0, 25, 80, 2, 0])
    boxes = random_boxes(rng, int(lengths.sum()))
    kinds = rng.integers(0, 3, len(boxes)) if has_kinds else np.zeros(len(boxes), int)
    expected, first = set(), 0
    for length in lengths:
        expected |= {
            (i, j)
            for i, j in combinations(range(first, first + length), 2)
            if kinds[i] == kinds[j] and is_near(boxes[i], boxes[j], iou)
        }
        first += length
    pairs = overlapping_pairs(lengths, boxes, iou, kinds if has_kinds else None)
    found = [pair for part in pairs for pair in zip(*map(np.ndarray.tolist, part), strict=True)]
    assert len(found) == len(set(found)) and set(found) == expected


def test_boxes_that_lie_apart_in_x_are_not_compared() -> None:
    """An image of many tiles has tens of thousands of boxes."""
    side, count = np.arange(200, dtype=np.float32), 200 * 200
    corners = np.stack(np.meshgrid(10 * side, 10 * side), axis=-1).reshape(-1, 2)
    boxes = np.random.default_rng(0).permutation(np.hstack([corners, corners + 8]))
    order, stops = box_overlaps._sweep(np.array([count]), boxes)
    compared = int((stops - np.arange(count) - 1).sum())
    assert compared == 200 * 200 * 199 // 2  # those of each column
    assert sorted(order.tolist()) == list(range(count))
    assert list(overlapping_pairs(np.array([count]), boxes, 0.1)) == []
