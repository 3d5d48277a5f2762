"""Images in folders and archives: COCO names files that are there, and --flat makes one folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from jobs.cli import main
from jobs.output.views import connect
from tests.jobs.exports.lake import (
    by_image_id,
    etag,
    label_by_hand,
    write_labelled_lake,
    write_lake,
)
from tests.support.labelled import LABELS, Labelled, random_boxes, write_run
from tests.support.samples import jpeg

ODD = (
    "X/A.jpg",
    "x/a.jpg",
    "con.jpg",
    "q/a b#1.jpg",
    "no-suffix",
    "é\u202fx.jpg",
    "x" * 240 + ".jpg",
)


@pytest.fixture
def written(tmp_path: Path) -> dict[str, bytes]:
    """The bytes of the images of a labelled lake, by their ids."""
    return write_labelled_lake(tmp_path)


def export(tmp_path: Path, to: str, *options: str, file: str = "made") -> int:
    return main(["export", str(tmp_path / "out"), str(tmp_path / file), "--to", to, *options])


def boxes_of(tmp_path: Path) -> dict[str, Any]:
    """The corners of all boxes in pixels, in order, by image id."""
    sql = "SELECT image_id, x_min, y_min, x_max, y_max FROM latest"
    with connect(str(tmp_path / "out")) as connection:
        found: dict[str, list[Any]] = {
            image_id: []
            for (image_id,) in connection.sql("FROM latest_images SELECT image_id").fetchall()
        }
        for image_id, *box in connection.sql(sql).fetchall():
            found[image_id].append(box)
    return {key: np.array(sorted(boxes)).reshape(-1, 4) for key, boxes in found.items()}


def test_coco_names_the_files_of_the_lake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = tmp_path / "lake"
    for name in ODD:
        (lake / name).parent.mkdir(parents=True, exist_ok=True)
        (lake / name).write_bytes(jpeg())
    images = [Labelled(f"file://{lake}/{name}", random_boxes(1, 2)) for name in ODD]
    write_run(tmp_path / "out", images, LABELS, source=f"file://{lake}")
    assert export(tmp_path, "coco") == 0
    named = {image["file_name"] for image in json.loads((tmp_path / "made").read_text())["images"]}
    assert named == set(ODD)
    assert "archives" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "a//x.jpg", "a\\..\\x.jpg", "a\nb"])
def test_a_name_that_leads_elsewhere_is_changed(name: str, tmp_path: Path) -> None:
    images = [Labelled(name, random_boxes(1, 1))]
    write_run(tmp_path / "out", images, LABELS, source="file:///lake")
    assert export(tmp_path, "coco") == 0
    (image,) = json.loads((tmp_path / "made").read_text())["images"]
    assert image["image_id"] == name
    assert not {"..", ""}.intersection(image["file_name"].split("/"))
    assert "\\" not in image["file_name"] and image["file_name"].isprintable()


def test_names_that_become_one_by_their_suffixes_are_told_apart(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    lake.mkdir()
    for number, name in enumerate(names := ["a.jpg", "a.jfif", "a.JPE"]):
        (lake / name).write_bytes(jpeg(number))
    images = [
        Labelled(f"file://{lake}/{name}", random_boxes(1, 2), etag=etag(f"file://{lake}/{name}"))
        for name in names
    ]
    write_run(tmp_path / "out", images, LABELS, source=f"file://{lake}")
    assert export(tmp_path, "coco", "--with-images") == 0
    rows = by_image_id(tmp_path / "made")
    for number, name in enumerate(names):
        picture = rows[f"file://{lake}/{name}"]["picture"]
        assert picture.endswith(".jpg")
        assert (tmp_path / "made/images" / picture).read_bytes() == jpeg(number)


def test_images_of_archives_are_said_to_have_no_file(
    written: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tmp_path, "coco") == 0
    said = capsys.readouterr().err
    assert "3 images of archives and Parquet files: no file has their file_name" in said
    images = json.loads((tmp_path / "made").read_text())["images"]
    files = {image["image_id"]: tmp_path / "lake" / image["file_name"] for image in images}
    loose = [image_id for image_id in written if "#" not in image_id]
    assert {files[one].read_bytes() for one in loose} == {written[one] for one in loose}


def test_coco_with_images_is_read_whole_by_supervision(
    written: dict[str, bytes], tmp_path: Path
) -> None:
    supervision = pytest.importorskip("supervision")
    for more in ([], ["--overwrite"]):
        assert export(tmp_path, "coco", "--with-images", *more) == 0
    made, document = tmp_path / "made", tmp_path / "made/annotations/instances_default.json"
    assert {path.name for path in made.iterdir()} == {"annotations", "images", "images.csv"}
    ids = {row["picture"]: image_id for image_id, row in by_image_id(made).items()}
    assert set(ids.values()) == written.keys()
    assert {image["file_name"] for image in COCO(str(document)).dataset["images"]} == ids.keys()
    data = supervision.DetectionDataset.from_coco(str(made / "images"), str(document))
    check(data, made / "images", ids, written, boxes_of(tmp_path), 1e-2)


@pytest.mark.parametrize(
    ("to", "folder", "pixels"), [("yolo", "images", 1e-2), ("voc", "JPEGImages", 1.01)]
)
def test_supervision_finds_all_of_a_flat_export(
    to: str,
    folder: str,
    pixels: float,
    written: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    supervision = pytest.importorskip("supervision")
    assert export(tmp_path, to, "--with-images") == 0
    assert f"in folders below {folder}, where supervision does not look" in capsys.readouterr().err
    assert export(tmp_path, to, "--with-images", "--flat", "--overwrite") == 0
    assert "does not look" not in capsys.readouterr().err
    made = tmp_path / "made"
    read = supervision.DetectionDataset
    if to == "yolo":
        data = read.from_yolo(str(made / folder), str(made / "labels"), str(made / "data.yaml"))
    else:
        data = read.from_pascal_voc(str(made / folder), str(made / "Annotations"))
    ids = {row["picture"]: image_id for image_id, row in by_image_id(made).items()}
    assert all("/" not in name for name in ids) and "album__images__b.JPG" in ids
    check(data, made / folder, ids, written, boxes_of(tmp_path), pixels)


def check(
    data: Any,
    folder: Path,
    ids: dict[str, str],
    written: dict[str, bytes],
    boxes: Any,
    pixels: float,
) -> None:
    """All images are in a dataset of supervision, with their bytes and boxes."""
    assert len(data) == len(ids) == len(written)
    for path, image, found in data:
        image_id = ids[str(Path(path).relative_to(folder))]
        assert Path(path).read_bytes() == written[image_id]
        made = np.array(sorted(found.xyxy.tolist())).reshape(-1, 4)
        # Supervision turns YOLO's fractions into pixels of the file, whose size the tables do not
        # have here.
        height, width = image.shape[:2]
        is_yolo = (folder.parent / "data.yaml").exists()
        scale = np.tile((width / 640, height / 480), 2) if is_yolo else np.ones(4)
        np.testing.assert_allclose(made, boxes[image_id] * scale, atol=pixels)


@pytest.mark.parametrize(
    ("to", "options", "file", "reason"),
    [
        ("coco", ["--with-images"], "a.json", "with the images coco is a folder; give its name"),
        (
            "coco",
            ["--flat"],
            "made",
            "--flat: coco is one file; yolo and voc are folders, and coco",
        ),
        ("csv", ["--flat"], "made", "--flat: csv is one file"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    to: str,
    options: list[str],
    file: str,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lake = f"file://{tmp_path}/lake"
    write_lake(lake)
    label_by_hand(tmp_path / "out", lake)
    assert export(tmp_path, to, *options, file=file) == 2
    assert reason in capsys.readouterr().err
