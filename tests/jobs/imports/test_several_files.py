"""Results of one model in several files, with one annotation file, come in one after the other."""

from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.output.catalog import committed_runs
from tests.jobs.imports.test_imports import bring, write
from tests.support.tables import rows

IMAGES = [{"id": n, "file_name": f"{n}.jpg", "width": 100, "height": 80} for n in range(1, 5)]
DOCUMENT = {"images": IMAGES, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
LATEST = "SELECT image_id, num_detections FROM latest_images ORDER BY 1"


def entries(*images: int) -> list[dict[str, Any]]:
    return [{"image_id": n, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5} for n in images]


def boxes_by_image(output: Path) -> list[int]:
    found = rows(output, LATEST)
    assert [name for name, _ in found] == [f"{n}.jpg" for n in range(1, 5)]
    assert rows(output, "SELECT count(*) FROM latest") == [(sum(count for _, count in found),)]
    return [count for _, count in found]


def bring_entries(folder: Path, name: str, *images: int) -> None:
    annotations = write(folder, "instances.json", DOCUMENT)
    results = write(folder, name, entries(*images))
    assert bring((results, annotations), folder / "out", "--model", "m") == 0


def test_a_second_file_leaves_the_images_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    bring_entries(tmp_path, "0.json", 1, 2, 2)
    assert "left" not in capsys.readouterr().err
    bring_entries(tmp_path, "1.json", 3, 4)
    said = capsys.readouterr().err
    assert "2 boxes of 2 images, by m" in said
    assert "left as they are: 2 images without an entry in DETECTIONS" in said
    assert "replaced" not in said
    assert boxes_by_image(output) == [1, 2, 1, 1]
    bring_entries(tmp_path, "0.json", 1)  # the changed file replaces its own labels
    assert boxes_by_image(output) == [1, 0, 1, 1]
    assert main(["compact", str(output)]) == 0
    assert boxes_by_image(output) == [1, 0, 1, 1]
    bring_entries(tmp_path, "0.json", 2, 2)
    assert boxes_by_image(output) == [0, 2, 1, 1]


def test_an_image_in_two_files_has_the_boxes_of_the_newer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bring_entries(tmp_path, "0.json", 1, 2, 2)
    bring_entries(tmp_path, "1.json", 2, 3)
    assert "replaced: the boxes of 1 image that had some" in capsys.readouterr().err
    assert boxes_by_image(tmp_path / "out") == [1, 1, 1, 0]


def test_a_file_that_brings_nothing_makes_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bring_entries(tmp_path, "0.json", 1, 2)
    bring_entries(tmp_path, "1.json")
    assert "left as they are: 4 images" in capsys.readouterr().err
    assert boxes_by_image(tmp_path / "out") == [1, 1, 0, 0]
    assert len(committed_runs(str(tmp_path / "out"))) == 1
