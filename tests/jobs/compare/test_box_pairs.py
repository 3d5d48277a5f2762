"""Pairs of boxes equal those of a simple sequential algorithm, and meet their definition."""

import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torchvision.ops import box_iou

from jobs.compare import box_pairs
from jobs.compare.box_pairs import Boxes, Crowded, overlaps, pair_boxes

# image, class, score in tenths, x, y, width, height: few values, so that ties are common
ROW = st.tuples(
    *(st.integers(0, most) for most in (2, 1, 10, 6, 6)), st.integers(0, 5), st.integers(0, 5)
)
Row = tuple[int, int, int, int, int, int, int]
NAMES = ("image", "kind", "score", "box")
LEAST = st.sampled_from([0.1, 0.5, 0.75, 1.0])


def boxes(rows: list[Row]) -> Boxes:
    rows = sorted(rows, key=lambda row: row[0])
    flat = np.array(rows, float).reshape(-1, 7)
    corners = np.concatenate([flat[:, 3:5], flat[:, 3:5] + flat[:, 5:7]], axis=1)
    return Boxes(flat[:, 0].astype(int), flat[:, 1].astype(int), flat[:, 2] / 10, corners)


def pair_one_by_one(left: Boxes, right: Boxes, least: float) -> set[tuple[int, int]]:
    """Choose pairs from the best to the worst, if neither box has a partner yet."""
    ranked = []
    for i, j in product(range(len(left)), range(len(right))):
        iou = float(overlaps(left.box[i : i + 1], right.box[j : j + 1])[0])
        if left.image[i] == right.image[j] and iou >= least:
            other = bool(left.kind[i] != right.kind[j])
            ranked.append((other, -iou, abs(left.score[i] - right.score[j]), i, j))
    chosen: set[tuple[int, int]] = set()
    for *_, i, j in sorted(ranked):
        if all(i != a and j != b for a, b in chosen):
            chosen.add((i, j))
    return chosen


@given(st.lists(ROW, max_size=9), st.lists(ROW, max_size=9), LEAST)
def test_pairs_equal_those_chosen_one_by_one(
    left_rows: list[Row], right_rows: list[Row], least: float
) -> None:
    left, right = boxes(left_rows), boxes(right_rows)
    found = pair_boxes(left, right, least)
    pairs = list(zip(found.left.tolist(), found.right.tolist(), strict=True))
    assert len(set(found.left.tolist())) == len(set(found.right.tolist())) == len(pairs)
    assert set(pairs) == pair_one_by_one(left, right, least)
    assert found.same.tolist() == [left.kind[i] == right.kind[j] for i, j in pairs]


@given(st.lists(ROW, max_size=9), LEAST)
def test_boxes_that_did_not_change_are_paired_with_themselves(
    rows: list[Row], least: float
) -> None:
    side = boxes(rows)
    found = pair_boxes(side, side, least)
    assert len(found.left) == len(side)
    for columns in ("kind", "score", "box"):
        values = getattr(side, columns)
        assert np.array_equal(values[found.left], values[found.right])
    assert found.same.all() and (found.overlap == 1).all()


@given(st.lists(ROW, max_size=9), st.lists(ROW, max_size=9), LEAST)
def test_no_two_boxes_overlap_more_than_each_does_its_partner(
    left_rows: list[Row], right_rows: list[Row], least: float
) -> None:
    """The pairing is stable, and the same if the two sides are swapped."""
    left, right = (
        boxes([(row[0], 0, *row[2:]) for row in rows]) for rows in (left_rows, right_rows)
    )
    found = pair_boxes(left, right, least)
    assert sorted(pair_boxes(right, left, least).overlap) == pytest.approx(sorted(found.overlap))
    best_left = dict(zip(found.left.tolist(), found.overlap.tolist(), strict=True))
    best_right = dict(zip(found.right.tolist(), found.overlap.tolist(), strict=True))
    for i, j in product(range(len(left)), range(len(right))):
        iou = float(overlaps(left.box[i : i + 1], right.box[j : j + 1])[0])
        if left.image[i] == right.image[j] and iou >= least:
            assert iou <= max(best_left.get(i, 0), best_right.get(j, 0))


@given(st.lists(ROW, min_size=1, max_size=9))
def test_overlaps_equal_those_of_torchvision(rows: list[Row]) -> None:
    rows = [(*row[:5], row[5] + 1, row[6] + 1) for row in rows]
    side = boxes(rows)
    expected = box_iou(tensor(side.box), tensor(side.box)).numpy()
    for i in range(len(side)):
        found = overlaps(np.repeat(side.box[i : i + 1], len(side), axis=0), side.box)
        assert found == pytest.approx(expected[i])


def test_many_boxes_in_one_image_are_compared_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    rows = [(0, *rng.integers(0, 5, 6).tolist()) for _ in range(60)]
    left, right = boxes(rows[:30]), boxes(rows[30:])
    whole = pair_boxes(left, right, 0.3)
    monkeypatch.setattr(box_pairs, "AT_ONCE", 7)
    parts = pair_boxes(left, right, 0.3)
    assert np.array_equal(whole.left, parts.left) and np.array_equal(whole.right, parts.right)


def crowd(count: int, shift: float = 0.0) -> Boxes:
    """Boxes of image 1, all upon one another, with other scores."""
    box = np.tile([10.0 + shift, 10.0, 900.0, 900.0], (count, 1))
    zeros = np.zeros(count, np.int64)
    return Boxes(zeros + 1, zeros, np.linspace(0.9, 0.1, count), box)


def test_equal_boxes_are_paired_soon() -> None:
    """One round took one of the pairs: 1,000 equal boxes took 8 s, and 3,000 more than 100."""
    side = crowd(1500)
    began = time.process_time()
    found = pair_boxes(side, side, 0.5)
    assert time.process_time() - began < 20
    assert np.array_equal(found.left, found.right) and len(found.left) == 1500


def test_pairs_of_many_images_are_found_group_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = [(int(n), *rng.integers(0, 5, 6).tolist()) for n in rng.integers(0, 40, 1200)]
    left, right = boxes(rows[:600]), boxes(rows[600:])
    whole = pair_boxes(left, right, 0.3)
    monkeypatch.setattr(box_pairs, "MOST_MEETINGS", 400)
    parts = pair_boxes(left, right, 0.3)
    pairs = [set(zip(p.left.tolist(), p.right.tolist(), strict=True)) for p in (whole, parts)]
    assert pairs[0] == pairs[1] and len(pairs[0]) == len(whole.left) == len(parts.left) > 20


def test_images_with_too_many_boxes_upon_one_another_are_found() -> None:
    some, many = crowd(100), crowd(3200)
    other = Boxes(some.image - 1, some.kind, some.score, some.box)
    side = Boxes(*(np.concatenate([getattr(x, n) for x in (other, many)]) for n in NAMES))
    with pytest.raises(Crowded) as raised:
        pair_boxes(side, side, 0.5)
    assert raised.value.images.tolist() == [1]
    # Those are the pairs that meet: boxes beside one another do not.
    apart = many.box + 1000.0 * np.arange(len(many))[:, None]
    row = Boxes(many.image, many.kind, many.score, apart)
    assert len(pair_boxes(row, row, 0.5).left) == 3200
