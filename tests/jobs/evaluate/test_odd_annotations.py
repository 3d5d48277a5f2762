"""Annotations as tools write them: the same AP as pycocotools, or an error that says what to do."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jobs.accounting.plurals import counted
from jobs.cli import main
from jobs.evaluate.classes import ALIKE, NAMES, NUMBERS, Label, matched_classes
from jobs.evaluate.evaluate import evaluate
from jobs.evaluate.text import as_text
from pipeline.storage.errors import InputError
from tests.support.annotations import CAT, LABELS, annotate_cats, write_truth
from tests.support.labelled import Labelled, from_coco, write_run

Document = dict[str, Any]


def scene(*names: str, **changes: Any) -> Document:
    """Annotations of one cat in each image, with areas, which pycocotools needs."""
    found = annotate_cats(*names, **changes)
    for one in found["annotations"]:
        one.setdefault("area", 2500)
    return found


def figures_of_pycocotools(
    truth: Document, detections: list[Document], folder: Path
) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(write_truth(folder, truth))
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(figure) for figure in evaluation.stats]


def rewrite(**fields: Callable[[Any], Any]) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        for entry in document["annotations"]:
            for name, convert in fields.items():
                entry[name] = convert(entry[name])

    return change


def make_ids_floats(document: Document) -> None:
    for entry in document["images"]:
        entry["id"] = float(entry["id"])
        entry["file_name"] = "D:\\coco\\val2017\\" + entry["file_name"]


def make_ids_texts(document: Document) -> None:
    for entry in document["images"]:
        entry["id"] = f"{entry['id']}.0"
        entry["file_name"] = f"./{entry['file_name']}"


CHANGES: dict[str, Callable[[Document], None]] = {
    "crowds": rewrite(iscrowd=lambda crowd: True if crowd else None),
    "areas": rewrite(area=str),
    "boxes": rewrite(bbox=lambda box: [str(side) for side in box]),
    "image ids": rewrite(image_id=float, category_id=str),
    "floats": make_ids_floats,
    "texts": make_ids_texts,
}


def some_classes(testdata: Path) -> tuple[Document, list[Document]]:
    """The truth of all photos and what was detected on them, of a quarter of the classes."""
    truth = json.loads((testdata / "coco/annotations/instances_val2017_public55.json").read_text())
    found = json.loads((testdata / "coco/detections/deimv2_atto_public55.json").read_text())
    truth["categories"] = truth["categories"][:20]
    classes = {one["id"] for one in truth["categories"]}
    truth["annotations"] = [one for one in truth["annotations"] if one["category_id"] in classes]
    assert any(one["iscrowd"] for one in truth["annotations"])
    found = [one for one in found if one["score"] > 0.05 and one["category_id"] in classes]
    return truth, found


@pytest.fixture(scope="module")
def photos(
    testdata: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, list[float]]:
    """An OUTPUT, the text of its annotations, and the figures of pycocotools."""
    folder = tmp_path_factory.mktemp("photos")
    truth, found = some_classes(testdata)
    output = write_run(folder / "out", *from_coco(truth, found, "s3://lake/2017"))
    return output, json.dumps(truth), figures_of_pycocotools(truth, found, folder)


@pytest.mark.parametrize("change", CHANGES)
def test_fields_written_otherwise_give_the_figures_of_pycocotools(
    change: str, photos: tuple[str, str, list[float]], tmp_path: Path
) -> None:
    output, text, expected = photos
    truth = json.loads(text)
    CHANGES[change](truth)
    result = evaluate(output, write_truth(tmp_path, truth))
    assert list(result["metrics"].values()) == pytest.approx(expected, abs=5e-5)
    assert result["objects_without_area"] == 0


def test_missing_areas_are_those_of_the_boxes_and_are_said(testdata: Path, tmp_path: Path) -> None:
    truth, found = some_classes(testdata)
    for entry in truth["annotations"]:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    expected = figures_of_pycocotools(truth, found, tmp_path)
    output = write_run(tmp_path / "out", *from_coco(truth, found, "s3://lake/2017"))
    for number, entry in enumerate(truth["annotations"]):
        entry["area"] = ["", None][number % 2]
    result = evaluate(output, write_truth(tmp_path, truth))
    assert list(result["metrics"].values()) == pytest.approx(expected, abs=5e-5)
    count = len(truth["annotations"])
    assert f"areas        {counted(count, 'object')} without one: the sizes of" in as_text(result)


NOTHING: dict[str, tuple[Document, str]] = {
    "other images": (
        scene("a.jpg", annotations=[{"image_id": "a", "category_id": 3, "bbox": [1, 1, 2, 2]}] * 2),
        "all 2 are of images or categories that the file does not list, the first is annotation 1 "
        "(image_id a, category_id 3)",
    ),
    "no objects": (scene("a.jpg", annotations=[]), "the annotations hold no object to find"),
    "crowds": (
        scene("a.jpg", annotations=[{**scene("a")["annotations"][0], "iscrowd": 1}]),
        "the annotations hold no object to find",
    ),
    "failed": (scene("b.jpg"), "no annotated image was labelled"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_where_nothing_can_be_found_it_is_an_error(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, message = NOTHING[case]
    images = [Labelled("x/a.jpg", [CAT]), Labelled("x/b.jpg", status="undecodable")]
    output = write_run(tmp_path / "out", images, LABELS)
    assert main(["evaluate", output, write_truth(tmp_path, document)]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1 and said.out == ""


def test_only_labelled_images_without_an_object_are_an_error(tmp_path: Path) -> None:
    output = write_run(tmp_path / "out", [Labelled("a.jpg", [CAT])], LABELS)
    document = scene("a.jpg", "b.jpg")
    del document["annotations"][0]
    truth = write_truth(tmp_path, document)
    assert evaluate(output, truth)["metrics"]["AP"] == 0
    with pytest.raises(InputError, match="without --only-labelled"):
        evaluate(output, truth, only_labelled=True)


def test_a_model_that_found_nothing_has_no_precision_and_one_of_other_classes_is_refused(
    tmp_path: Path,
) -> None:
    truth = write_truth(tmp_path, scene("a.jpg"))
    found_dogs = [Labelled("a.jpg", [(2, 0.9, 1.0, 1.0, 9.0, 9.0)])]
    result = evaluate(write_run(tmp_path / "dogs", found_dogs, LABELS), truth)
    assert result["metrics"]["AP"] == 0
    assert result["boxes"]["not_annotated"] == 1
    assert "1            are of classes that are not annotated" in as_text(result)
    with pytest.raises(InputError, match=r"no class of OUTPUT \(circle, star\) has the name"):
        evaluate(write_run(tmp_path / "b", [Labelled("a.jpg")], ("", "circle", "star")), truth)


def test_boxes_without_a_class_name_are_never_evaluated_in_silence(tmp_path: Path) -> None:
    boxes = [CAT, (0, 0.99, 10.0, 10.0, 60.0, 60.0)]
    output = write_run(tmp_path / "out", [Labelled("a.jpg", boxes)], LABELS)
    result = evaluate(output, write_truth(tmp_path, scene("a.jpg")))
    assert result["metrics"]["AP"] == pytest.approx(1)
    assert "1            have no class name, and are left out" in as_text(result)
    nameless = write_run(tmp_path / "nameless", [Labelled("a.jpg", boxes)], ("", "  "))
    document = scene("a.jpg", categories=[{"id": 1, "name": "cat"}])
    document["annotations"][0]["category_id"] = 1
    truth = write_truth(tmp_path, document)
    with pytest.raises(InputError, match=r"no box of OUTPUT has the name .* --match numbers"):
        evaluate(nameless, truth)
    result = evaluate(nameless, truth, match=NUMBERS)
    assert result["metrics"]["AP"] == pytest.approx(1)
    assert "have no class name, and are taken by their numbers" in as_text(result)


def test_names_with_other_signs_are_offered(tmp_path: Path) -> None:
    labels = ("", "traffic light", "dog")
    output = write_run(tmp_path / "out", [Labelled("a.jpg", [CAT, (2, 0.5, 0, 0, 9, 9)])], labels)
    categories = [{"id": 3, "name": "Traffic_Light"}, {"id": 4, "name": " DOG "}]
    truth = write_truth(tmp_path, scene("a.jpg", categories=categories))
    first = evaluate(output, truth)
    assert first["metrics"]["AP"] == 0
    said = as_text(first)
    assert "other spelling 1: traffic light = Traffic_Light: --by-name takes them for" in said
    second = evaluate(output, truth, match=ALIKE)
    assert second["metrics"]["AP"] == pytest.approx(1)
    assert "matched by the letters and digits of their names" in as_text(second)


def test_names_of_several_categories_are_refused_only_where_they_matter() -> None:
    light = Label(10, "traffic light")
    classes = {1: "traffic_light", 2: "traffic-light", 3: "traffic light"}
    assert matched_classes([light], [], classes, ALIKE).ids == {light: 3}
    del classes[3]
    with pytest.raises(InputError, match="categories 1 and 2 are both called traffic light"):
        matched_classes([light], [], classes, ALIKE)
    with pytest.raises(InputError, match="no class of OUTPUT"):
        matched_classes([light], [], classes, NAMES)
    assert matched_classes([], [], classes, NAMES).ids == {}


def test_last_names_do_not_override_paths(tmp_path: Path) -> None:
    """Where one image is known by its path, others are not guessed by their last names."""
    images = [Labelled("s3://lake/x/a.jpg", [CAT]), Labelled("s3://lake/y/b.jpg", [CAT])]
    output = write_run(tmp_path / "out", images, LABELS)
    result = evaluate(output, write_truth(tmp_path, scene("x/a.jpg", "z/b.jpg")))
    assert result["images"]["matched_by"] == {"path": 1}
    only_last = write_truth(tmp_path, scene("u/a.jpg", "v/a.jpg"))
    with pytest.raises(InputError, match=r"x/a\.jpg may be u/a\.jpg \(id 7\) and v/a\.jpg"):
        evaluate(output, only_last)


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("https://host/x/a%20b.jpg?v=1", "a b.jpg"),
        ("s3://lake/cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("s3://lake/caf\u00e9.jpg", "x/cafe\u0301.jpg"),
        ("x\\y\\a.jpg", "y/a.jpg"),
    ],
)
def test_names_written_in_another_way_are_the_same(uri: str, name: str, tmp_path: Path) -> None:
    output = write_run(tmp_path / "out", [Labelled(uri, [CAT])], LABELS)
    result = evaluate(output, write_truth(tmp_path, scene(name)))
    assert result["metrics"]["AP"] == pytest.approx(1)
