"""Class numbers of an export are those of the model, whatever was detected or chosen."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from jobs.exports.classes import model_classes
from jobs.exports.exports import EXPORTS
from jobs.output.catalog import committed_runs
from jobs.output.manifest import Manifest
from jobs.output.views import connect
from model.config import SHAPE_LABELS
from tests.support.labelled import LABELS, SOURCE, Box, Labelled, write_run

NAMED = ["circle", "tea cup", "star"]


def box(label_id: int) -> Box:
    return Box(label_id, 0.5, 10, 20, 110, 220)


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An OUTPUT as early versions made them, with boxes of label 0 and of the hole 3."""
    images = [Labelled(f"{SOURCE}/a.jpg", [box(k) for k in (0, 2, 3, 4)])]
    return write_run(tmp_path / "out", images, LABELS, source=SOURCE)


def labels_in(file: Path, to: str) -> list[str]:
    """Return the names of the classes of all boxes of an export."""
    if to == "coco":
        document = json.loads(file.read_text())
        names = {one["id"]: one["name"] for one in document["categories"]}
        return [names[one["category_id"]] for one in document["annotations"]]
    if to == "labelstudio":
        (task,) = json.loads(file.read_text())
        (prediction,) = task["predictions"]
        return [region["value"]["rectanglelabels"][0] for region in prediction["result"]]
    if to == "csv":
        with file.open(newline="") as rows:
            return [row["class_name"] for row in csv.DictReader(rows)]
    if to == "voc":
        text = (file / "Annotations/a.xml").read_text()
        return [line.strip()[6:-7] for line in text.splitlines() if "<name>" in line]
    names = yaml.safe_load((file / "data.yaml").read_text())["names"]
    lines = (file / "labels/a.txt").read_text().splitlines()
    return [names[int(line.split()[0])] for line in lines]


@pytest.mark.parametrize("to", EXPORTS)
def test_boxes_without_a_name_are_left_out_and_counted(
    to: str, output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", output, str(tmp_path / "made"), "--to", to]) == 0
    assert labels_in(tmp_path / "made", to) == ["tea cup", "star"]
    said = capsys.readouterr().err
    assert "2 boxes of 1 image" in said
    assert "left out: 2 boxes; the model has no name for the label id" in said


def test_boxes_without_a_name_have_the_general_threshold(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", output, str(tmp_path / "made"), "--to", "csv"]
    assert main([*words, "--min-score", "0.6", "--thresholds", "star=0.4"]) == 0
    assert labels_in(tmp_path / "made", "csv") == ["star"]
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--labels", "star"), ("--min-score", "0.9")])
def test_yolo_has_the_numbers_of_the_model_whatever_is_chosen(
    options: tuple[str, ...], output: str, tmp_path: Path
) -> None:
    assert main(["export", output, str(tmp_path / "made"), "--to", "yolo", *options]) == 0
    data = yaml.safe_load((tmp_path / "made/data.yaml").read_text())
    assert data["names"] == dict(enumerate(NAMED))
    assert data["nc"] == 3
    assert (tmp_path / "made/classes.txt").read_text().splitlines() == NAMED
    lines = (tmp_path / "made/labels/a.txt").read_text().splitlines()
    found = {line.split()[0] for line in lines}
    assert found == {(): {"1", "2"}, ("--labels", "star"): {"2"}}.get(options, set())


def test_coco_has_the_ids_of_the_model_whatever_is_chosen(output: str, tmp_path: Path) -> None:
    for name, options in (("all", ()), ("star", ("--labels", "star"))):
        assert main(["export", output, str(tmp_path / name), "--to", "coco", *options]) == 0
    every, star = (json.loads((tmp_path / name).read_text()) for name in ("all", "star"))
    assert [one["id"] for one in every["categories"]] == [1, 2, 4]
    assert [one["category_id"] for one in star["annotations"]] == [4]
    assert all(one in every["categories"] for one in star["categories"])


def without_labels(output: str, model: str) -> list[Manifest]:
    """Return the manifests as early versions wrote them."""
    return [{**run, "labels": [], "model": model} for run in committed_runs(output)]


def test_a_run_without_a_class_list_has_that_of_its_model(tmp_path: Path) -> None:
    images = [Labelled(f"{SOURCE}/a.jpg", [box(2)])]
    output = write_run(tmp_path / "out", images, SHAPE_LABELS, source=SOURCE)
    with connect(output) as connection:
        classes, lines = model_classes(connection, without_labels(output, "shapes-tiny"))
    assert classes == {k: name for k, name in enumerate(SHAPE_LABELS) if name}
    assert lines == ["runs of shapes-tiny record no class list, so that of the model is taken"]


@pytest.mark.parametrize("model", ["theirs", "shapes-tiny"])
def test_a_run_without_a_class_list_of_an_unknown_model_has_its_detections(
    model: str, output: str
) -> None:
    """A model of our name whose detections have other classes was trained for them."""
    with connect(output) as connection:
        classes, lines = model_classes(connection, without_labels(output, model))
    assert classes == {2: "tea cup", 4: "star"}
    assert len(lines) == 1 and f"runs of {model} record no class list" in lines[0]


def test_a_run_without_a_class_list_has_that_of_a_later_run(output: str) -> None:
    (run,) = committed_runs(output)
    with connect(output) as connection:
        classes, lines = model_classes(connection, [*without_labels(output, "theirs"), run])
    assert list(classes.values()) == NAMED
    assert lines == []


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_classes_with_names_that_become_equal_stay_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    labels = ("", "x:y", "x_y", "a ", "a", " a", "n\nl", "n l", "n l_6")
    images = [Labelled(f"{SOURCE}/a.jpg", [box(k) for k in range(1, len(labels))])]
    output = write_run(tmp_path / "out", images, labels, source=SOURCE)
    made = tmp_path / "made"
    assert main(["export", output, str(made), "--to", form]) == 0
    if form == "yolo":
        names = (made / "classes.txt").read_text().splitlines()
        assert names == ["x:y", "x_y", "a_2", "a", "a_4", "n l_5", "n l", "n l_6"]  # numbers from 0
        return
    text = (made / "Annotations/a.xml").read_text()
    names = [line.strip()[6:-7] for line in text.splitlines() if "<name>" in line]
    wanted = ["x_y_1", "x_y", "a_3", "a", "a_5", "n l_6_6", "n l", "n l_6"]
    assert sorted(names) == sorted(wanted)
    lines = (made / "labelmap.txt").read_text().splitlines()[2:]
    assert [line.split(":")[0] for line in lines] == wanted
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "other names" in one]
    assert line.endswith(r"x:y, 'a ', ' a', 'n\nl'")


def test_voc_names_classes_as_its_label_map_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A colon ends a name in labelmap.txt, and # begins a comment."""
    labels = ("", "a:b", "#c", "d, e", "background")
    images = [Labelled(f"{SOURCE}/album/a.jpg", [box(k) for k in (1, 2, 3, 4)])]
    output = write_run(tmp_path / "out", images, labels, source=SOURCE)
    made = tmp_path / "made"
    assert main(["export", output, str(made), "--to", "voc"]) == 0
    lines = (made / "labelmap.txt").read_text().splitlines()
    names = [line.split(":")[0] for line in lines if not line.startswith("#")]
    assert all(line.count(":") == 3 for line in lines)
    assert names == ["background", "a_b", "_c", "d, e"]
    text = (made / "Annotations/album/a.xml").read_text()
    found = [line.strip()[6:-7] for line in text.splitlines() if "<name>" in line]
    assert sorted(found) == sorted(names)
    assert (made / "ImageSets/Main/default.txt").read_text() == "album/a\n"
    assert "other names, for the signs in labelmap.txt: a:b, #c" in capsys.readouterr().err
