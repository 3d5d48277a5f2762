"""Rendered scenes: repeatable, within their ranges, and boxed as tightly as they look."""

import numpy as np
import pytest

from jobs.demo import scenes
from jobs.demo.scenes import SHAPES, random_size, render_scene, scene


@pytest.fixture(scope="module")
def many_scenes() -> list[scenes.Scene]:
    return [scene(7, index, (320, 240)) for index in range(60)]


def test_same_seed_and_index_give_the_same_scene() -> None:
    first, again, other = scene(1, 2), scene(1, 2), scene(1, 3)
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert other.pixels.shape != first.pixels.shape or (other.pixels != first.pixels).any()


@pytest.mark.parametrize("size", [(200, 1200), (1200, 200), (256, 340), (333, 201)])
def test_scene_has_the_requested_size_and_types(size: tuple[int, int]) -> None:
    rendered = render_scene(np.random.default_rng(0), *size)
    assert rendered.pixels.shape == (size[1], size[0], 3)
    assert rendered.pixels.dtype == np.uint8
    assert rendered.boxes.dtype == np.float32
    assert rendered.boxes.shape == (len(rendered.labels), 4)
    assert rendered.labels.dtype == np.int64


def test_random_sizes_span_their_range() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([random_size(rng) for _ in range(2000)])
    assert sizes.min() >= 200 and sizes.min() < 220
    assert sizes.max() <= 1200 and sizes.max() > 1180
    aspect = sizes[:, 0] / sizes[:, 1]
    assert aspect.min() >= 0.33 and aspect.min() < 0.4
    assert aspect.max() <= 3.02 and aspect.max() > 2.5


@pytest.mark.slow
def test_boxes_lie_inside_and_span_the_sizes(many_scenes: list[scenes.Scene]) -> None:
    counts = [len(rendered.labels) for rendered in many_scenes]
    assert min(counts) == 1 and max(counts) == 8
    boxes = np.concatenate([rendered.boxes for rendered in many_scenes])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (320, 240)).all()
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1)
    shorter = (boxes[:, 2:] - boxes[:, :2]).min(1)
    assert shorter.min() >= 3
    assert 7 <= longer.min() < 16  # the smallest whole object has 12 pixels
    assert 105 < longer.max() <= 121  # the largest object has 120 pixels


def test_every_shape_occurs(many_scenes: list[scenes.Scene]) -> None:
    labels = np.concatenate([rendered.labels for rendered in many_scenes])
    assert set(labels.tolist()) == set(range(1, len(SHAPES)))


def test_boxes_are_tight_around_what_the_image_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are drawn white on black without effects, so a box must end where white ends."""

    def draw_black(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
        return np.zeros((height, width, 3), np.uint8)

    monkeypatch.setattr(scenes, "_background", draw_black)
    monkeypatch.setattr(scenes, "_photograph", lambda rng, canvas: canvas)
    monkeypatch.setattr(scenes, "_fill_pattern", lambda rng, h, w: np.zeros((h, w), np.float32))
    monkeypatch.setattr(scenes, "_contrasting", lambda rng, beneath: np.full(3, 255, np.float32))
    for index in range(100):
        rendered = scenes.render_scene(np.random.default_rng([3, index]), 200, 160, most=1)
        white = rendered.pixels[..., 0] > 127
        rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
        seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(rendered.boxes[0], seen, atol=1)


def test_crowded_objects_stay_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 60 % of each object stays visible after every placement, though objects overlap."""
    lowest: list[float] = []
    place = scenes._place

    def measure_and_place(rng, cutout, ids, areas):  # type: ignore[no-untyped-def]
        if areas:
            visible = np.bincount(ids.ravel(), minlength=len(areas) + 1)[1:]
            lowest.append((visible / np.array(areas)).min())
        return place(rng, cutout, ids, areas)

    monkeypatch.setattr(scenes, "_place", measure_and_place)
    for index in range(40):
        scene(4, index, (300, 220))
    assert min(lowest) >= 0.6
    assert np.mean(np.array(lowest) < 0.97) > 0.2


def test_shapes_differ_when_turned_and_stretched() -> None:
    """No shape covers almost the same pixels as another at 48 px, however they are turned."""
    silhouettes: dict[str, list[np.ndarray]] = {name: [] for name in SHAPES[1:]}
    rng = np.random.default_rng(0)
    for name, masks in silhouettes.items():
        for _ in range(24):
            mask = scenes._cut(rng, scenes._CONTOURS[name], 48).mask
            canvas = np.zeros((52, 52), bool)
            top, left = (52 - mask.shape[0]) // 2, (52 - mask.shape[1]) // 2
            canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
            masks.append(canvas.ravel())
    stacks = {name: np.array(masks, np.float32) for name, masks in silhouettes.items()}
    for first, a in stacks.items():
        for second, b in stacks.items():
            if first < second:
                shared = a @ b.T
                overlap = shared / (a.sum(1)[:, None] + b.sum(1)[None] - shared)
                assert overlap.max() < 0.88, (first, second)
