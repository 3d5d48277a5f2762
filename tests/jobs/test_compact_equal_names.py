"""`compact` keeps every row, whatever names and positions the rows of earlier versions have."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.compact import compact
from jobs.output.catalog import committed_runs
from tests.support.labelled import Labelled, write_run
from tests.support.nights import LABELS, NIGHTS, photo
from tests.support.tables import rows

PARQUET = "file:///lake/a.parquet"
IMAGES = "SELECT image_id, uri, status, width, num_detections, max_score, etag FROM latest_images"
BOXES = "SELECT image_id, detection, label, score, x_min, y_max FROM latest"


def row_of_parquet(name: str, boxes: int, width: int) -> Labelled:
    """An image that a column of its Parquet file names."""
    image = photo(name, boxes)
    return replace(image, image_id=name, shard=PARQUET, uri=PARQUET, width=width)


def newest(output: Path) -> list[Counter[tuple[Any, ...]]]:
    return [Counter(rows(str(output), sql)) for sql in (IMAGES, BOXES)]


@pytest.mark.parametrize("images_a_file", [1, 2, 99])
def test_rows_of_one_name_stay_apart(images_a_file: int, tmp_path: Path) -> None:
    """Versions before 0.2 took the column as it is, though several rows have one name."""
    same = [row_of_parquet("x", boxes, 100 + boxes) for boxes in (3, 0, 2)]
    write_run(tmp_path, [row_of_parquet("y", 1, 7), *same], LABELS, NIGHTS[0])
    write_run(tmp_path, [photo("b.jpg", 1)], LABELS, NIGHTS[1])
    before = newest(tmp_path)
    assert before[0].total() == 5 and before[1].total() == 1 + 5 + 1
    (done,) = compact(str(tmp_path), images_a_file)
    assert (done.images, done.superseded) == (5, 0)
    assert newest(tmp_path) == before
    places = "SELECT index_in_shard, width FROM images WHERE uri LIKE '%.parquet' ORDER BY 1"
    assert rows(str(tmp_path), places) == [(0, 7), (1, 103), (2, 100), (3, 102)]
    assert main(["runs", str(tmp_path), "--verify"]) == 0
    write_run(tmp_path, [photo("b.jpg", 2, "2")], LABELS, "20990101T000000Z-aaaaaa")
    expected = newest(tmp_path)
    (done,) = compact(str(tmp_path))
    assert (done.images, done.superseded) == (5, 1)
    assert newest(tmp_path) == expected


def test_rows_of_one_file_that_was_planned_twice(tmp_path: Path) -> None:
    """Of one object, in two places of a plan."""
    write_run(
        tmp_path, [photo("a.jpg", 2), photo("b.jpg", 1), photo("a.jpg", 2)], LABELS, NIGHTS[0]
    )
    write_run(tmp_path, [photo("c.jpg", 1)], LABELS, NIGHTS[1])
    before = newest(tmp_path)
    compact(str(tmp_path), 1)
    assert newest(tmp_path) == before
    (run,) = committed_runs(str(tmp_path))
    assert sum(run["images"].values()) == 4
