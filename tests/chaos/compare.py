"""What an OUTPUT holds, and how that differs from what an undisturbed run would have left."""

import hashlib
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from jobs.output.catalog import read_catalog
from jobs.output.views import connect

IMAGES = "image_id, uri, status, width, height, num_detections"
BOXES = "run, shard, image_id, detection, label_id, score, x_min, y_min, x_max, y_max"

Row = tuple[Any, ...]
# For each image its rows in all runs that count, each with its boxes. Floats are compared exactly.
Tables = dict[str, list[tuple[Row, tuple[Row, ...]]]]


@dataclass
class Difference:
    """How the tables of an OUTPUT differ from those of an undisturbed run, in images."""

    lost: int = 0  # images with too few rows
    twice: int = 0  # images with too many rows
    differing: int = 0  # images whose row or boxes are others

    def __str__(self) -> str:
        return f"{self.lost} lost, {self.twice} twice, {self.differing} different"

    def __bool__(self) -> bool:
        return bool(self.lost or self.twice or self.differing)


def read_tables(output: str, latest: bool = False) -> Tables:
    """All rows of an OUTPUT, or what its views `latest` show; {} if it holds no run."""
    runs = read_catalog(output).committed_runs()
    if not runs:
        return {}
    images, boxes = ("latest_images", "latest") if latest else ("images", "detections")
    with closing(connect(output, runs)) as database:
        rows = database.sql(f"SELECT run, shard, {IMAGES} FROM {images}").fetchall()
        found = database.sql(f"SELECT {BOXES} FROM {boxes} ORDER BY ALL").fetchall()
    of_image: defaultdict[Row, list[Row]] = defaultdict(list)
    for run, shard, image_id, *box in found:
        of_image[run, shard, image_id].append(tuple(box))
    tables: Tables = {}
    for run, shard, image_id, *row in rows:
        content = (tuple(row), tuple(of_image.pop((run, shard, image_id), ())))
        tables.setdefault(image_id, []).append(content)
    assert not of_image, f"boxes of images that have no row: {sorted(of_image)[:3]}"
    return {image_id: sorted(found, key=repr) for image_id, found in sorted(tables.items())}


def difference(found: Tables, expected: Tables) -> Difference:
    """Compare two OUTPUTs, image by image."""
    total = Difference()
    for image_id in found.keys() | expected.keys():
        here, there = found.get(image_id, []), expected.get(image_id, [])
        total.lost += len(here) < len(there)
        total.twice += len(here) > len(there)
        total.differing += len(here) == len(there) and here != there
    return total


def digest(tables: Tables) -> str:
    """A short name of all content of an OUTPUT."""
    return hashlib.sha256(repr(sorted(tables.items())).encode()).hexdigest()[:16]
