"""Resized sizes equal those of transformers where it follows the original, and are bounded."""

import pytest

from model.config import PUBLISHED_RESIZE
from model.resize import ResizeRule


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1066)),
        (640, 480, (1066, 800)),
        (500, 1000, (666, 1332)),
        (800, 1200, (800, 1200)),
        (1, 1, (800, 800)),
        (1, 1000, (1, 1000)),
        (1, 50_000_000, (1, 1333)),
        (65_000, 3, (1333, 1)),
    ],
)
def test_published_rule(height: int, width: int, expected: tuple[int, int]) -> None:
    assert PUBLISHED_RESIZE.target_size(height, width) == expected


def test_no_image_becomes_much_larger_than_the_longest_side() -> None:
    rule = ResizeRule(shorter=288, longest=576)
    for short in (1, 2, 3, 7, 50, 287, 288, 289, 5000):
        for factor in (1, 1.5, 1.99, 2.01, 3, 17, 300, 900, 100_000):
            long = round(short * factor)
            for size in (rule.target_size(short, long), rule.target_size(long, short)):
                assert min(size) >= 1
                assert max(size) <= 2 * rule.longest


@pytest.mark.parametrize(
    ("own", "prepared"),
    [
        ((480, 640), (480, 640)),
        ((800, 1066), (800, 1066)),
        ((801, 1066), (800, 1064)),
        ((1, 1000), (1, 1000)),
        ((3, 1400), (3, 1400)),
        ((2, 1400), (2, 1400)),
        ((200, 200), (200, 200)),
        ((199, 199), (800, 800)),  # it becomes more than 16 times as large
    ],
)
def test_a_preparer_leaves_to_the_detector_what_becomes_larger(
    own: tuple[int, int], prepared: tuple[int, int]
) -> None:
    assert PUBLISHED_RESIZE.prepared_size(*own, enlarge=False) == prepared
    assert PUBLISHED_RESIZE.prepared_size(*own, enlarge=True) == PUBLISHED_RESIZE.target_size(*own)


def test_sides_are_rounded_to_a_multiple() -> None:
    rule = ResizeRule(shorter=288, longest=576, multiple=32)
    assert rule.target_size(480, 640) == (288, 384)
    assert rule.target_size(1000, 1100) == (288, 320)
    assert rule.target_size(100, 1000) == (64, 576)
    assert rule.target_size(1, 2000) == (32, 576)
    for height, width in ((37, 911), (288, 301), (575, 290), (1200, 200)):
        assert all(side % 32 == 0 for side in rule.target_size(height, width))
