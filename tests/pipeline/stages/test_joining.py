"""Boxes of several views become one box for each object."""

import numpy as np
import pytest

from pipeline.stages.joining import join_views
from pipeline.stages.recovery import Outcome
from pipeline.stages.tiling import View

WHOLE = View(0, 0, 100, 180, 50, 90)
LEFT = View(0, 0, 100, 100, 100, 100)
RIGHT = View(0, 80, 100, 100, 100, 100)
VIEWS = [WHOLE, LEFT, RIGHT]
Box = tuple[float, int, tuple[float, float, float, float]]  # score, label, corners


def outcome(*boxes: Box) -> Outcome:
    """The outcome of a view, in its own pixels."""
    scores, labels, corners = zip(*boxes, strict=True) if boxes else ((), (), ())
    return Outcome(
        np.array(scores, np.float32),
        np.array(labels, np.int32),
        np.array(corners, np.float32).reshape(-1, 4),
        seconds=1.5,
    )


def joined(whole: list[Box], left: list[Box], right: list[Box]) -> list[Box]:
    found = join_views(VIEWS, [outcome(*boxes) for boxes in (whole, left, right)])
    assert found.failure is None and found.seconds == 4.5
    numbers = zip(found.scores, found.labels, found.boxes.tolist(), strict=True)
    return [(round(float(score), 3), int(label), tuple(box)) for score, label, box in numbers]


def test_boxes_are_moved_and_best_come_first() -> None:
    assert joined([], [(0.5, 1, (10, 20, 30, 40))], [(0.9, 2, (50, 20, 60, 40))]) == [
        (0.9, 2, (130, 20, 140, 40)),
        (0.5, 1, (10, 20, 30, 40)),
    ]


def test_an_object_that_two_tiles_show_entirely_has_the_better_box() -> None:
    assert joined([], [(0.7, 1, (82, 20, 96, 40))], [(0.8, 1, (3, 20, 16, 41))]) == [
        (0.8, 1, (83, 20, 96, 41))
    ]


def test_the_tile_that_shows_an_object_entirely_wins_over_the_one_that_cuts_it() -> None:
    entire = (0.5, 1, (60, 20, 95, 40))
    assert joined([], [entire], [(0.9, 1, (0, 20, 15, 40))]) == [entire]


def test_an_object_that_all_tiles_cut_is_that_of_the_whole_image() -> None:
    large = (0.5, 1, (40, 20, 160, 80))
    left, right = (0.9, 1, (40, 20, 100, 80)), (0.8, 1, (0, 20, 80, 80))
    assert joined([large], [left], [right]) == [large]


def test_parts_that_only_tiles_found_are_put_together() -> None:
    left, right = (0.7, 1, (40, 20, 100, 80)), (0.8, 1, (0, 22, 80, 81))
    assert joined([], [left], [right]) == [(0.8, 1, (40, 20, 160, 81))]


def test_the_detailed_box_of_a_tile_wins_over_that_of_the_whole_image() -> None:
    assert joined([(0.9, 1, (9, 19, 32, 42))], [(0.6, 1, (10, 20, 31, 41))], []) == [
        (0.6, 1, (10, 20, 31, 41))
    ]


@pytest.mark.parametrize(
    "right",
    [
        (0.8, 2, (3, 20, 16, 41)),  # another class
        (0.8, 1, (0, 50, 15, 70)),  # another place
        (0.8, 1, (15, 20, 30, 40)),  # beside it
    ],
)
def test_other_objects_keep_their_boxes(right: Box) -> None:
    assert len(joined([], [(0.7, 1, (82, 20, 96, 40))], [right])) == 2


def test_boxes_of_one_view_are_left_as_they_are() -> None:
    twice: list[Box] = [(0.9, 1, (10, 10, 50, 50)), (0.8, 1, (11, 10, 50, 50))]
    assert joined([], twice, []) == twice
    assert joined(twice, [], []) == twice


def test_the_order_of_views_does_not_matter() -> None:
    random = np.random.default_rng(0)
    outcomes = []
    for view in VIEWS:
        corners = random.uniform(0, view.width - 40, (30, 2))
        boxes = np.concatenate((corners, corners + random.uniform(5, 40, (30, 2))), axis=1)
        scores = random.integers(1, 9, 30) / 10  # many are equal
        outcomes.append(
            Outcome(
                scores.astype(np.float32),
                random.integers(1, 3, 30).astype(np.int32),
                boxes.astype(np.float32),
            )
        )
    expected = join_views(VIEWS, outcomes)
    found = join_views([WHOLE, RIGHT, LEFT], [outcomes[0], outcomes[2], outcomes[1]])
    assert np.array_equal(found.boxes, expected.boxes)
    assert np.array_equal(found.scores, expected.scores)
    assert 30 < len(found.scores) < 90


def test_an_image_fails_with_the_first_of_its_views() -> None:
    failed = Outcome(*_nothing(), 1.0, ("timed_out", "too slow"))
    found = join_views(VIEWS, [outcome(), outcome((0.5, 1, (1, 1, 2, 2))), failed])
    assert found.failure == ("timed_out", "in the tile at x 80, y 0: too slow")
    assert (len(found.scores), found.seconds) == (0, 4.0)
    found = join_views(VIEWS, [failed, failed, outcome()])
    assert found.failure == ("timed_out", "too slow")


def _nothing() -> tuple[
    np.ndarray[tuple[int], np.dtype[np.float32]],
    np.ndarray[tuple[int], np.dtype[np.int32]],
    np.ndarray[tuple[int, int], np.dtype[np.float32]],
]:
    none = outcome()
    return none.scores, none.labels, none.boxes
