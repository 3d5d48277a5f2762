"""The tools that a format is for read what `export` writes, and find what the tables hold."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image
from pycocotools.coco import COCO

from jobs.cli import main
from jobs.cli.export_import import FORMATS
from jobs.exports.exports import EXPORTS
from jobs.exports.labelstudio import labeling_config
from pipeline.storage.files import open_location
from tests.support.labelled import LABELS, SOURCE, Labelled, random_boxes, write_run

CLASSES = {k: name for k, name in enumerate(LABELS) if name}
ALBUM = [
    Labelled(f"{SOURCE}/a.jpg", boxes=random_boxes(1, 5), width=400, height=300),
    Labelled(f"{SOURCE}/b.png", width=400, height=300),
    Labelled(f"{SOURCE}/broken.jpg", status="undecodable"),
    Labelled(f"{SOURCE}/c.jpg", boxes=random_boxes(2, 3), width=900, height=310),
]
GOOD = {image.image_id.rsplit("/", 1)[1]: image for image in ALBUM if image.status == "ok"}
CORNERS = ("x_min", "y_min", "x_max", "y_max")


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An OUTPUT of two runs; the newer run has replaced the labels of the older one."""
    folder = str(tmp_path / "out")
    old = [Labelled(f"{SOURCE}/c.jpg", boxes=random_boxes(9, 7), width=900, height=310)]
    write_run(folder, old, LABELS, "20250101T000000Z-000000", source=SOURCE)
    write_run(folder, ALBUM, LABELS, source=SOURCE)
    return folder


def corners(image: Labelled) -> Any:
    """Return the corners of the boxes (N, 4) in pixels, best first."""
    values = [[getattr(box, name) for name in CORNERS] for box in image.named_boxes()]
    return np.array(values, np.float64).reshape(-1, 4)


def export(output: str, file: object, to: str, *options: str) -> int:
    return main(["export", output, str(file), "--to", to, *options])


def test_pycocotools_reads_an_export_as_coco(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(output, tmp_path / "labels.json", "coco") == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "8 boxes of 3 images" in printed.err
    assert "left out: 1 image that could not be labelled" in printed.err
    coco = COCO(str(tmp_path / "labels.json"))
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == CLASSES
    assert {image["file_name"] for image in coco.dataset["images"]} == set(GOOD)
    for image in coco.dataset["images"]:
        wanted = GOOD[image["file_name"]]
        assert (image["image_id"], image["shard"]) == (wanted.image_id, wanted.shard)
        assert (image["width"], image["height"]) == (wanted.width, wanted.height)
        found = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        boxes = np.array([a["bbox"] for a in found]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, corners(wanted), atol=2e-4)
        assert [a["score"] for a in found] == pytest.approx([b.score for b in wanted.named_boxes()])
        assert [a["category_id"] for a in found] == [b.label_id for b in wanted.named_boxes()]
    assert len(coco.loadRes(coco.dataset["annotations"]).anns) == 8


def write_blank_images(folder: Path) -> Path:
    """Write blank images of the right sizes, because supervision reads their sizes."""
    folder.mkdir()
    for name, image in GOOD.items():
        Image.new("RGB", (image.width, image.height)).save(folder / name)
    return folder


@pytest.mark.parametrize(("to", "pixels"), [("coco", 1e-3), ("yolo", 1e-3), ("voc", 0.51)])
def test_supervision_reads_the_exported_datasets(
    to: str, pixels: float, output: str, tmp_path: Path
) -> None:
    supervision = pytest.importorskip("supervision")
    exported, images = tmp_path / "made", str(write_blank_images(tmp_path / "images"))
    assert export(output, exported, to) == 0
    if to == "coco":
        data = supervision.DetectionDataset.from_coco(images, str(exported))
    elif to == "yolo":
        data = supervision.DetectionDataset.from_yolo(
            images, str(exported / "labels"), str(exported / "data.yaml")
        )
    else:
        data = supervision.DetectionDataset.from_pascal_voc(images, str(exported / "Annotations"))
    assert len(data) == len(GOOD)
    assert set(data.classes) <= set(CLASSES.values())
    for path, _, found in data:
        wanted = GOOD[Path(path).name]
        np.testing.assert_allclose(found.xyxy.reshape(-1, 4), corners(wanted), atol=pixels)
        names = [data.classes[k] for k in found.class_id]
        assert names == [LABELS[box.label_id] for box in wanted.named_boxes()]


def test_the_sdk_of_label_studio_accepts_the_tasks(output: str, tmp_path: Path) -> None:
    """Its predictions fit the labeling interface, and accepted they convert to COCO's format."""
    reason = "label-studio-sdk is not installed: it wants other versions of numpy and OpenCV"
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason=reason)
    converter = pytest.importorskip("label_studio_sdk.converter", reason=reason)
    assert export(output, tmp_path / "tasks.json", "labelstudio") == 0
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    config = labeling_config(CLASSES)
    interface = sdk.LabelInterface(config)
    for task in tasks:
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction, return_errors=True) == []
        task["annotations"] = task.pop("predictions")
    accepted = tmp_path / "accepted.json"
    accepted.write_text(json.dumps(tasks))
    to_coco = converter.Converter(config, str(tmp_path), download_resources=False)
    to_coco.convert_to_coco(str(accepted), str(tmp_path / "coco"), is_dir=False)
    coco = json.loads((tmp_path / "coco" / "result.json").read_text())
    names = {c["id"]: c["name"] for c in coco["categories"]}
    assert sum(len(image.boxes) for image in GOOD.values()) == len(coco["annotations"])
    for image in coco["images"]:
        wanted = GOOD[
            image["file_name"].rpartition("__")[2]
        ]  # the SDK puts a hash of the URL before the name
        found = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in found]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, corners(wanted), atol=1e-3)
        assert [names[a["category_id"]] for a in found] == [
            LABELS[box.label_id] for box in wanted.named_boxes()
        ]


def test_tasks_for_label_studio_hold_percents_of_images(output: str, tmp_path: Path) -> None:
    assert export(output, tmp_path / "tasks.json", "labelstudio") == 0
    for task in json.loads((tmp_path / "tasks.json").read_text()):
        wanted = GOOD[task["data"]["file_name"]]
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "made-by-hand"
        boxes = [
            [region["value"][name] for name in ("x", "y", "width", "height")]
            for region in prediction["result"]
        ]
        found = np.array(boxes).reshape(-1, 4) / 100 * ([wanted.width, wanted.height] * 2)
        found[:, 2:] += found[:, :2]
        np.testing.assert_allclose(found, corners(wanted), atol=1e-3)


def test_pandas_reads_an_export_as_csv(output: str, tmp_path: Path) -> None:
    assert export(output, tmp_path / "labels.csv", "csv") == 0
    table = pandas.read_csv(tmp_path / "labels.csv")
    columns = [*CORNERS, "class_id", "confidence", "tracker_id", "image", "class_name", "shard"]
    assert list(table.columns) == columns
    for image in GOOD.values():
        found = table[(table["image"] == image.image_id) & (table["shard"] == image.shard)]
        assert len(found) == max(1, len(image.boxes))  # an image without boxes has one row
        found = found.dropna(subset=["x_min"])
        np.testing.assert_allclose(found[list(CORNERS)].to_numpy(), corners(image), atol=1e-3)
        assert found["class_id"].tolist() == [box.label_id for box in image.named_boxes()]
        assert found["class_name"].tolist() == [LABELS[b.label_id] for b in image.named_boxes()]
        wanted = [box.score for box in image.named_boxes()]
        assert found["confidence"].tolist() == pytest.approx(wanted)
    assert set(table["image"]) == {image.image_id for image in GOOD.values()}


def test_scores_and_labels_choose_boxes_and_keep_images(output: str, tmp_path: Path) -> None:
    score = ALBUM[0].named_boxes()[2].score  # a float32, so the box itself is not below it
    options = ("--min-score", repr(score), "--labels", "tea cup,star")
    assert export(output, tmp_path / "labels.json", "coco", *options) == 0
    exported = json.loads((tmp_path / "labels.json").read_text())
    assert [category["name"] for category in exported["categories"]] == ["tea cup", "star"]
    assert len(exported["images"]) == 3
    wanted = [b for i in GOOD.values() for b in i.named_boxes() if b.score >= score]
    assert len(exported["annotations"]) == sum(box.label_id != 1 for box in wanted)


def test_classes_have_the_same_numbers_whichever_of_them_occur(tmp_path: Path) -> None:
    few = (*(box for box in random_boxes(1, 9) if box.label_id == 4),)
    write_run(tmp_path / "out", [Labelled(f"{SOURCE}/a.jpg", few)], LABELS, source=SOURCE)
    assert export(str(tmp_path / "out"), tmp_path / "yolo", "yolo") == 0
    assert (tmp_path / "yolo" / "classes.txt").read_text() == "circle\ntea cup\nstar\n"
    assert (tmp_path / "yolo" / "labels" / "a.txt").read_text().startswith("2 ")


@pytest.mark.parametrize("to", EXPORTS)
def test_an_existing_export_is_overwritten_only_on_demand(
    to: str, output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "made"
    assert export(output, file, to) == 0
    if file.is_dir():
        (file / "mine.txt").write_text("mine")
    before = read_files(file)
    assert export(output, file, to) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert read_files(file) == before
    assert export(output, file, to, "--overwrite") == 0
    assert read_files(file) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def read_files(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(file.relative_to(path.parent)): file.read_bytes().decode() for file in files}


@pytest.mark.parametrize("to", EXPORTS)
def test_an_export_reads_and_writes_buckets(to: str, bucket: str, tmp_path: Path) -> None:
    for output in (f"{bucket}/out", str(tmp_path / "out")):
        write_run(output, ALBUM, LABELS, source=SOURCE)
    assert export(f"{bucket}/out", f"{bucket}/made", to) == 0
    assert export(f"{bucket}/out", f"{bucket}/made", to) == 2
    assert export(f"{bucket}/out", f"{bucket}/made", to, "--overwrite") == 0
    assert export(str(tmp_path / "out"), tmp_path / "made", to) == 0
    fs, path = open_location(bucket, "FILE")
    found = {
        name[len(path) + 1 :]: fs.cat_file(name).decode()
        for name in fs.find(path)
        if not name.startswith(f"{path}/out/")
    }
    assert found == read_files(tmp_path / "made")


def test_the_command_line_names_every_format() -> None:
    assert tuple(EXPORTS) == FORMATS


REFUSED: list[tuple[list[str], str]] = [
    (["--to", "coco", "--min-score", "2"], "--min-score 2.0: give 0 to 1"),
    (["--to", "csv", "--labels", "dog"], "--labels dog: the labels are circle, tea cup, star"),
    (["--to", "coco", "--image-prefix", "http://h/"], "--image-prefix is for --to labelstudio"),
    (["--to", "labelstudio", "--image-prefix", "file:///lake"], "Label Studio shows http://"),
    (["--to", "labelstudio", "--image-prefix", "photos"], "Label Studio shows http://"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_wrong_options_are_refused(
    options: list[str],
    message: str,
    output: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["export", output, str(tmp_path / "made"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("to", EXPORTS)
def test_an_export_that_fails_leaves_nothing(
    to: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the first image is written."""

    def raise_no_space(*_: Any) -> Callable[..., Any]:
        raise OSError("no space left on device")

    monkeypatch.setattr("jobs.exports.reader.SafeNames.name", raise_no_space)
    before = sorted(tmp_path.iterdir())
    assert export(output, tmp_path / "made", to) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no files")
def test_paths_that_cannot_be_written_are_refused(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("")
    for file, to, message in (
        (tmp_path / "folder", "coco", "is a folder, and this format is a file"),
        (tmp_path / "folder" / "mine", "voc", "is a file, and this format is a folder"),
        (tmp_path / "folder", "yolo", "is a folder that no export wrote"),
        ("/proc/labels", "csv", "FILE /proc/labels does not exist"),
        ("/proc/labels", "yolo", "FILE /proc/labels does not exist"),
        ("https://example.com/labels.json", "coco", "web addresses cannot be written to"),
    ):
        assert export(output, file, to, "--overwrite") == 2
        assert message in capsys.readouterr().err
