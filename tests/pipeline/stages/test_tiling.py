"""The views of an image cover it, overlap as asked, and are bounded."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import PUBLISHED_RESIZE
from model.resize import AS_DISPLAYED, ResizeRule
from pipeline.stages.decode import decode_row
from pipeline.stages.tiling import (
    MAX_PIXELS,
    MOST_BYTES,
    Tiling,
    smallest_tile,
    views,
    why_too_many,
)
from tests.support.samples import jpeg

SIDES = st.integers(1, 500)


def test_a_tile_that_holds_an_image_of_too_many_pixels_is_too_large() -> None:
    row = decode_row(jpeg(), ResizeRule(32, 64), 120 * 80 - 1, tiling=Tiling(120))
    assert row["status"] == "too_many_pixels" and row["error"].endswith("give a smaller --tile")


@given(SIDES, SIDES, st.integers(32, 200), st.floats(0, 0.5))
def test_tiles_cover_every_pixel_have_one_size_and_overlap_as_asked(
    height: int, width: int, size: int, overlap: float
) -> None:
    whole, *tiles = views(height, width, PUBLISHED_RESIZE, True, Tiling(size, overlap))
    assert (whole.top, whole.left, whole.height, whole.width) == (0, 0, height, width)
    assert bool(tiles) == (max(height, width) > size)
    covered = np.zeros((height, width), bool)
    for tile in tiles:
        covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = True
        assert (tile.height, tile.width) == (min(height, size), min(width, size))
        assert tile.top + tile.height <= height and tile.left + tile.width <= width
    assert covered.all() or not tiles
    for starts, side in (
        ({tile.top for tile in tiles}, min(height, size)),
        ({tile.left for tile in tiles}, min(width, size)),
    ):
        ordered = sorted(starts)
        for start, following in pairwise(ordered):
            assert start + side - following >= int(overlap * size)


def test_views_have_the_sizes_that_images_of_their_own_have() -> None:
    whole, *tiles = views(2000, 3000, PUBLISHED_RESIZE, True, Tiling(1000, 0.2))
    assert (whole.rows, whole.columns) == (800, 1200)
    assert {(tile.rows, tile.columns) for tile in tiles} == {(800, 800)}
    assert [(tile.top, tile.left) for tile in tiles] == [
        (top, left) for top in (0, 800, 1000) for left in (0, 800, 1600, 2000)
    ]
    _, *small = views(2000, 3000, PUBLISHED_RESIZE, True, Tiling(500, 0.2))
    assert {(tile.rows, tile.columns) for tile in small} == {(500, 500)}  # the detector enlarges


def test_the_whole_of_a_huge_image_is_small_for_detectors_that_resize_it_themselves() -> None:
    whole, *_ = views(20_000, 20_000, AS_DISPLAYED, True, Tiling(1000))
    assert (whole.rows, whole.columns) == (2236, 2236)
    whole, *_ = views(10_000, 10_000, AS_DISPLAYED, True, Tiling(1000))
    assert whole.rows * whole.columns == MAX_PIXELS


@pytest.mark.parametrize(
    ("size", "tiling", "reason"),
    [
        ((22_360, 22_360), Tiling(800), None),  # 500 megapixels
        ((31_600, 31_600), Tiling(1333), None),  # 1,000 megapixels
        ((32_000, 32_000), Tiling(1333), "is more than 1000000000 pixels"),
        ((31_600, 31_600), Tiling(800, 0.5), f"bytes, more than {MOST_BYTES}: give a larger"),
        ((1, 1_000_000_000), Tiling(88), "tiles, more than 50000: give a larger --tile"),
    ],
)
def test_views_are_bounded(size: tuple[int, int], tiling: Tiling, reason: str | None) -> None:
    found = why_too_many(*size, PUBLISHED_RESIZE, True, tiling)
    assert found is None if reason is None else reason in str(found)


def test_the_smallest_tile_is_one_that_detectors_enlarge() -> None:
    for rule in (PUBLISHED_RESIZE, ResizeRule(352, 704, 32), ResizeRule(801, 1333)):
        least = smallest_tile(rule)
        assert rule.prepared_size(least, least, enlarge=False) == (least, least)
        smaller = least - 1
        assert rule.prepared_size(smaller, smaller, enlarge=False) != (smaller, smaller)
    assert smallest_tile(AS_DISPLAYED) == 32
