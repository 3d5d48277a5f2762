"""Each tool finds all images of an export with all their boxes, called from another folder."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.cli import main
from jobs.output.views import connect
from tests.jobs.exports.lake import by_image_id, write_labelled_lake
from tests.support.samples import jpeg

TOOLS = Path(__file__).parents[3] / ".venv/tools/bin/python"
READERS = Path(__file__).with_name("tool_readers.py")
# Pixels by which a corner may differ: VOC has whole pixels, and datumaro adds none to the last.
PIXELS = dict.fromkeys(("ultralytics", "fiftyone_yolo", "fiftyone_coco", "datumaro_coco"), 0.01)
WHOLE_PIXELS = 2.01

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not TOOLS.exists(), reason="no environment of the tools: `make tools` installs them"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A labelled lake, exported with images as `yolo`, `voc` and `coco`, and as `coco.json`."""
    folder = tmp_path_factory.mktemp("images")  # a folder of this name lies above all images
    write_labelled_lake(folder)
    output = str(folder / "out")
    for to in ("yolo", "voc", "coco"):
        assert main(["export", output, str(folder / to), "--to", to, "--with-images"]) == 0
    assert main(["export", output, str(folder / "coco.json"), "--to", "coco"]) == 0
    yield folder


def read_with_tool(reader: str, folder: Path, *arguments: Path) -> dict[str, list[Any]]:
    settings = {"YOLO_CONFIG_DIR": str(folder), "YOLO_OFFLINE": "true"}
    settings |= {"FIFTYONE_DO_NOT_TRACK": "true", "FIFTYONE_CONFIG_PATH": str(folder / "none")}
    command = [str(TOOLS), str(READERS), reader, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd="/", env=os.environ | settings
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def labelled_boxes(folder: Path) -> dict[str, list[Any]]:
    """Return label and corners in pixels of all boxes, sorted, by image id."""
    sql = "SELECT image_id, label, x_min, y_min, x_max, y_max FROM latest"
    with connect(str(folder / "out")) as connection:
        images = connection.sql("SELECT image_id FROM latest_images").fetchall()
        found: dict[str, list[Any]] = {image_id: [] for (image_id,) in images}
        for image_id, *box in connection.sql(sql).fetchall():
            found[image_id].append(box)
    return found


@pytest.mark.parametrize(
    ("reader", "made", "images"),
    [
        ("ultralytics", "yolo", "images"),
        ("fiftyone_yolo", "yolo", "images"),
        ("datumaro", "voc", "JPEGImages"),
        ("fiftyone_voc", "voc", "JPEGImages"),
        ("datumaro_coco", "coco", "images"),
    ],
)
def test_a_tool_finds_every_image_and_box(
    reader: str, made: str, images: str, folder: Path
) -> None:
    found = read_with_tool(reader, folder, folder / made)
    rows = by_image_id(folder / made)
    wanted = {
        str(folder / made / images / rows[image_id]["picture"]): boxes
        for image_id, boxes in labelled_boxes(folder).items()
    }
    assert found.keys() == wanted.keys()
    for path, boxes in wanted.items():
        check_boxes(found[path], boxes, PIXELS.get(reader, WHOLE_PIXELS))


def test_fiftyone_reads_coco_with_its_images(folder: Path) -> None:
    made = folder / "coco"
    document = made / "annotations/instances_default.json"
    found = read_with_tool("fiftyone_coco", folder, document, made / "images")
    rows, wanted = by_image_id(made), labelled_boxes(folder)
    assert len(found) == len(rows) == len(wanted)
    for image_id, boxes in wanted.items():
        path = str(made / "images" / rows[image_id]["picture"])
        check_boxes(found[path], boxes, PIXELS["fiftyone_coco"])


def test_fiftyone_finds_the_loose_images_of_coco_in_the_lake(folder: Path) -> None:
    """It stops at an image without a file, so those of the archive lie there too."""
    images = json.loads((folder / "coco.json").read_text())["images"]
    for image in images:
        placed = folder / "lake" / image["file_name"]
        assert placed.exists() == ("#" not in image["image_id"])
    shutil.copytree(folder / "lake", folder / "placed")
    (folder / "placed/s.tar").unlink()
    for image in images:
        if "#" in image["image_id"]:
            placed = folder / "placed" / image["file_name"]
            placed.parent.mkdir(parents=True, exist_ok=True)
            placed.write_bytes(jpeg())
    found = read_with_tool("fiftyone_coco", folder, folder / "coco.json", folder / "placed")
    wanted = labelled_boxes(folder)
    assert len(found) == len(images) == len(wanted)
    for image in images:
        boxes = found[str(folder / "placed" / image["file_name"])]
        check_boxes(boxes, wanted[image["image_id"]], PIXELS["fiftyone_coco"])


def check_boxes(found: list[Any], wanted: list[Any], pixels: float) -> None:
    """Compare boxes in fractions of an image of 640 x 480 with boxes in pixels."""
    size = np.array([640, 480] * 2)
    corners = [[x, y, x + w, y + h] for _, x, y, w, h in found]
    order = sorted(range(len(found)), key=lambda k: (found[k][0], corners[k]))
    expected = sorted(wanted)
    assert [found[k][0] for k in order] == [label for label, *_ in expected]
    made = np.array([corners[k] for k in order]).reshape(-1, 4) * size
    np.testing.assert_allclose(made, [box for _, *box in expected], atol=pixels)
