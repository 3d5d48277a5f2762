"""The table of COCO's image sizes, and random draws from it."""

import json
from collections import Counter
from pathlib import Path

from jobs.bench.gpu.sizes import TABLE, coco_sizes, draw_sizes


def test_the_table_covers_all_of_val2017() -> None:
    sizes = coco_sizes()
    assert sum(sizes.values()) == 5000
    assert len(sizes) == len(TABLE.read_text().splitlines()) - 1  # no size has two rows
    assert min(sizes.values()) >= 1
    assert max(max(size) for size in sizes) == 640


def test_the_most_frequent_size_comes_first() -> None:
    sizes = coco_sizes()
    assert next(iter(sizes)) == max(sizes, key=lambda size: sizes[size]) == (480, 640)
    rows = [(-images, width, height) for (height, width), images in sizes.items()]
    assert rows == sorted(rows)


def test_draws_are_reproducible() -> None:
    assert draw_sizes(100) == draw_sizes(100, seed=0)
    assert draw_sizes(100) != draw_sizes(100, seed=1)
    assert draw_sizes(0) == []


def test_draws_follow_the_table() -> None:
    sizes, count = coco_sizes(), 50_000
    drawn = Counter(draw_sizes(count))
    assert set(drawn) <= set(sizes)
    for size, images in sizes.items():
        assert abs(drawn[size] / count - images / 5000) < 0.01


def test_real_photos_of_val2017_have_sizes_of_the_table(testdata: Path) -> None:
    labels = json.loads((testdata / "coco/annotations/instances_val2017_public55.json").read_text())
    found = Counter((image["height"], image["width"]) for image in labels["images"])
    assert found.total() == 55
    assert found <= Counter(coco_sizes())
