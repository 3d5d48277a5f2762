"""`evaluate` gives published figures, matches images and classes, and reports what is missing."""

import json
import math
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.evaluate.average_precision import METRICS
from jobs.evaluate.classes import ALIKE, NUMBERS
from jobs.evaluate.evaluate import evaluate
from jobs.evaluate.text import as_text
from pipeline.storage.files import InputError
from tests.support import labelled
from tests.support.annotations import CAT, LABELS, annotate_cats, write_truth
from tests.support.labelled import Labelled, from_coco, random_boxes, write_run

PAIRS = {
    # The authors of pycocotools published these figures for this pair of files.
    "eval_pairs": (
        "eval_pairs/instances_val2014_100.json",
        "eval_pairs/instances_val2014_fakebbox100_results.json",
        (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564),
        5e-4,
    ),
    # pycocotools computes these figures for the detections of another model.
    "photos": (
        "coco/annotations/instances_val2017_public55.json",
        "coco/detections/deimv2_atto_public55.json",
        (0.2649, 0.3923, 0.2760),
        5e-5,
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_figures_equal_those_that_others_published(
    pair: str, testdata: Path, tmp_path: Path
) -> None:
    truth_file, found_file, figures, tolerance = PAIRS[pair]
    truth = json.loads((testdata / truth_file).read_text())
    images, labels = from_coco(truth, json.loads((testdata / found_file).read_text()), "s3://lake")
    output = write_run(tmp_path / "out", images, labels)
    result = evaluate(output, str(testdata / truth_file))
    found = [result["metrics"][name] for name in METRICS[: len(figures)]]
    assert found == pytest.approx(figures, abs=tolerance)
    assert result["images"]["matched_by"] == {"path": len(images)}
    assert result["classes"]["matched_by"] == "name"
    assert len(result["by_class"]) == 80


NAMES = {
    "image_id": ("s3://lake/a.jpg", Labelled("s3://lake/a.jpg", [CAT])),
    "path": ("2017/a.jpg", Labelled("https://host/x/2017/a.jpg?id=5", [CAT])),
    "key": (
        "2017/a.b.jpg",
        Labelled("s3://lake/x.tar#a", [CAT], shard="s3://lake/x.tar", uri="s3://lake/x.tar"),
    ),
    "id": ("a.jpg", Labelled("7", [CAT], shard="s3://lake/x.parquet", uri="s3://lake/x.parquet")),
}


@pytest.mark.parametrize("rule", NAMES)
def test_images_are_matched_by_several_kinds_of_names(rule: str, tmp_path: Path) -> None:
    name, image = NAMES[rule]
    other = Labelled("s3://lake/other.png", [CAT])
    output = write_run(tmp_path / "out", [image, other], LABELS)
    result = evaluate(output, write_truth(tmp_path, annotate_cats(name)))
    assert result["images"]["matched_by"] == {rule: 1}
    assert result["images"]["not_annotated"] == 1
    assert result["images"]["examples"]["not_annotated"] == ["s3://lake/other.png"]
    assert result["metrics"]["AP"] == pytest.approx(1)


def test_the_longest_matching_path_decides_which_image_is_meant(tmp_path: Path) -> None:
    images = [Labelled("s3://lake/a.jpg", [CAT]), Labelled("s3://lake/x/a.jpg", [CAT])]
    output = write_run(tmp_path / "out", images, LABELS)
    result = evaluate(output, write_truth(tmp_path, annotate_cats("a.jpg", "x/a.jpg")))
    assert result["images"]["labelled"] == 2
    with pytest.raises(InputError, match=r"a\.jpg of the annotations may be .*/a\.jpg .* and"):
        evaluate(output, write_truth(tmp_path, annotate_cats("a.jpg")))


def test_names_that_mean_several_annotated_images_are_refused(tmp_path: Path) -> None:
    tar = "s3://lake/x.tar"
    output = write_run(tmp_path / "out", [Labelled(f"{tar}#a", [CAT], shard=tar, uri=tar)], LABELS)
    with pytest.raises(InputError, match=r"#a may be a\.jpg \(id 7\) and a\.png \(id 8\)"):
        evaluate(output, write_truth(tmp_path, annotate_cats("a.jpg", "a.png")))


def test_an_error_says_what_was_compared_if_nothing_matches(tmp_path: Path) -> None:
    output = write_run(tmp_path / "out", [Labelled("s3://lake/b.jpg", [CAT])], LABELS)
    with pytest.raises(InputError, match=r"file_name a\.jpg and the id 7; .* s3://lake/b\.jpg"):
        evaluate(output, write_truth(tmp_path, annotate_cats("a.jpg")))
    truth = annotate_cats("b.jpg", categories=[{"id": 30, "name": "boat"}])
    with pytest.raises(InputError, match=r"no class of OUTPUT \(cat, dog\) .* \(boat\)"):
        evaluate(output, write_truth(tmp_path, truth))


def test_failed_and_unlabelled_images_count_unless_left_out(tmp_path: Path) -> None:
    images = [Labelled("x/a.jpg", [CAT]), Labelled("x/b.jpg", status="undecodable")]
    output = write_run(tmp_path / "out", images, LABELS)
    truth = write_truth(tmp_path, annotate_cats("a.jpg", "b.jpg", "c.jpg", "d.jpg"))
    result = evaluate(output, truth)
    counts = {name: result["images"][name] for name in ("labelled", "failed", "not_labelled")}
    assert counts == {"labelled": 1, "failed": 1, "not_labelled": 2}
    assert result["metrics"]["AR_100"] == pytest.approx(0.25)
    assert "1            annotated, but failed: count as images without" in as_text(result)
    alone = evaluate(output, truth, only_labelled=True)
    assert alone["metrics"]["AR_100"] == pytest.approx(1)
    assert "annotated, but not labelled: left out (c.jpg, d.jpg)" in as_text(alone)


def test_classes_are_matched_by_number_only_if_asked(tmp_path: Path) -> None:
    output = write_run(tmp_path / "out", [Labelled("a.jpg", [CAT, (2, 0.4, 0, 0, 9, 9)])], LABELS)
    categories = [{"id": 1, "name": "Katze"}, {"id": 3, "name": "Vogel"}]
    annotations = annotate_cats("a.jpg", categories=categories)
    annotations["annotations"][0]["category_id"] = 1
    truth = write_truth(tmp_path, annotations)
    with pytest.raises(InputError, match=r"--match numbers takes equal .* \(1 cat = Katze\)"):
        evaluate(output, truth)
    result = evaluate(output, truth, match=NUMBERS)
    assert result["classes"]["matched_by"] == "id"
    assert result["classes"]["labelled_not_annotated"] == ["dog"]
    assert result["metrics"]["AP"] == pytest.approx(1)
    assert "1 cat = Katze" in as_text(result)
    assert main(["evaluate", output, truth]) == 2
    assert main(["evaluate", output, truth, "--match", "numbers"]) == 0
    assert main(["evaluate", output, truth, "--match", "numbers", "--by-name"]) == 2


def test_two_categories_of_one_name_are_refused(tmp_path: Path) -> None:
    output = write_run(tmp_path / "out", [Labelled("a.jpg", [CAT])], LABELS)
    by_name = evaluate(output, write_truth(tmp_path, annotate_cats("a.jpg")))
    assert by_name["classes"]["matched_by"] == "name"
    twice = annotate_cats("a.jpg", categories=[{"id": 3, "name": "cat"}, {"id": 4, "name": "CAT"}])
    with pytest.raises(InputError, match="3 and 4 are both called cat"):
        evaluate(output, write_truth(tmp_path, twice))


@pytest.mark.parametrize("spelling", ["traffic_light", "Traffic-Light", "trafficlight"])
def test_other_spellings_are_matched_if_asked(spelling: str, tmp_path: Path) -> None:
    labels = ("", "traffic light", "cat")
    boxes = [CAT, (2, 0.8, 30.0, 30.0, 60.0, 60.0)]
    output = write_run(tmp_path / "out", [Labelled("a.jpg", boxes)], labels)
    categories = [{"id": 7, "name": spelling}]
    annotations = annotate_cats("a.jpg", categories=categories)
    annotations["annotations"][0]["category_id"] = 7
    truth = write_truth(tmp_path, annotations)
    with pytest.raises(InputError, match=f"--by-name .*traffic light = {spelling}"):
        evaluate(output, truth)
    assert main(["evaluate", output, truth, "--by-name"]) == 0
    result = evaluate(output, truth, match=ALIKE)
    assert result["metrics"]["AP"] == pytest.approx(1)
    assert result["classes"]["labelled_not_annotated"] == ["cat"]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("photos\\a.jpg", "path"),
        ("./photos/a.jpg", "path"),
        ("C:\\lake\\other\\a.jpg", "name"),
        ("train2017/a.jpg", "name"),
    ],
)
def test_file_names_of_other_machines_are_matched(name: str, rule: str, tmp_path: Path) -> None:
    output = write_run(tmp_path / "out", [Labelled("s3://lake/photos/a.jpg", [CAT])], LABELS)
    result = evaluate(output, write_truth(tmp_path, annotate_cats(name)))
    assert result["images"]["matched_by"] == {rule: 1}
    assert result["metrics"]["AP"] == pytest.approx(1)


def test_boxes_that_are_no_boxes_are_counted_and_move_nothing(tmp_path: Path) -> None:
    odd = [(1, 0.99, math.nan, 0.0, 9.0, 9.0), (1, 0.98, 0.0, 0.0, math.inf, 9.0)]
    odd.append((0, 0.97, 0.0, 0.0, 9.0, 9.0))  # of a class without a name
    truth = write_truth(tmp_path, annotate_cats("a.jpg"))
    right = evaluate(write_run(tmp_path / "a", [Labelled("a.jpg", [CAT])], LABELS), truth)
    result = evaluate(write_run(tmp_path / "b", [Labelled("a.jpg", [*odd, CAT])], LABELS), truth)
    assert result["metrics"] == right["metrics"]
    assert (result["boxes"]["not_usable"], result["boxes"]["without_name"]) == (2, 1)
    assert "2            have corners or scores that are no finite numbers" in as_text(result)


def test_objects_without_an_area_have_that_of_their_box(tmp_path: Path) -> None:
    output = write_run(tmp_path / "out", [Labelled("a.jpg", [CAT])], LABELS)
    annotations = annotate_cats("a.jpg")
    (one,) = annotations["annotations"]
    one.pop("area", None)
    one["iscrowd"] = None
    result = evaluate(output, write_truth(tmp_path, annotations))
    assert result["objects_without_area"] == 1
    assert "areas        1 object without one: the sizes" in as_text(result)


def test_the_newest_labels_count(tmp_path: Path) -> None:
    for run_id, boxes in (("20260101T000000Z-aaaaaa", []), ("20260102T000000Z-bbbbbb", [CAT])):
        write_run(tmp_path / "out", [Labelled("a.jpg", boxes)], LABELS, run_id, 0.3)
    result = evaluate(str(tmp_path / "out"), write_truth(tmp_path, annotate_cats("a.jpg")))
    assert result["metrics"]["AP"] == pytest.approx(1)
    assert result["score_threshold"] == pytest.approx(0.3)
    assert "Of boxes that score 0.3 or more" in as_text(result)


def test_an_output_without_a_box_has_no_precision(tmp_path: Path) -> None:
    output = write_run(tmp_path / "out", [Labelled("a.jpg")], LABELS)
    result = evaluate(output, write_truth(tmp_path, annotate_cats("a.jpg")))
    assert (result["metrics"]["AP"], result["metrics"]["AP_L"]) == (0.0, -1.0)
    assert result["classes"]["annotated_not_labelled"] == ["Cat"]


def test_a_broken_annotation_file_gives_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = write_run(tmp_path / "out", [Labelled("a.jpg", [CAT])], LABELS)
    truth = annotate_cats("a.jpg", annotations=[{"image_id": 7, "bbox": [1, 2, 3]}])
    assert main(["evaluate", output, write_truth(tmp_path, truth)]) == 2
    error = capsys.readouterr().err
    assert "truth.json: annotation 1 (image_id 7): bbox [1, 2, 3] is not" in error
    assert error.count("\n") == 1


def test_ids_may_be_numbers_or_texts(tmp_path: Path) -> None:
    """Image ids rank boxes of equal scores, so ids of another type must not change the figures."""
    images = [Labelled(name, [CAT]) for name in ("a.jpg", "b.jpg", "c.jpg")]
    output = write_run(tmp_path / "out", images, LABELS)
    truth = annotate_cats("a.jpg", "b.jpg", "c.jpg")
    numbers = evaluate(output, write_truth(tmp_path, truth))
    truth["images"][0]["id"] = truth["annotations"][0]["image_id"] = "seven"
    truth["images"][1]["id"], truth["annotations"][1]["image_id"] = 8.0, "8"
    assert evaluate(output, write_truth(tmp_path, truth)) == numbers


def test_objects_of_unlisted_images_are_left_out_and_counted(tmp_path: Path) -> None:
    truth = annotate_cats("a.jpg", "b.jpg")
    del truth["images"][1]
    output = write_run(tmp_path / "out", [Labelled("a.jpg", [CAT])], LABELS)
    assert "left out     1 object of images" in as_text(
        evaluate(output, write_truth(tmp_path, truth))
    )


def test_the_command_line_prints_text_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b[2Ja.jpg"
    output = write_run(tmp_path / "out", [Labelled(hostile), Labelled("b.jpg", [CAT])], LABELS)
    truth = write_truth(tmp_path, annotate_cats("b.jpg"))
    assert main(["evaluate", output, truth]) == 0
    text = capsys.readouterr().out
    assert "\\x1b[2Ja.jpg" in text and "\x1b" not in text
    assert main(["evaluate", output, truth, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["AP"] == pytest.approx(1)
    assert main(["evaluate", output, str(tmp_path / "absent.json")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["evaluate", truth, output]) == 2
    assert f"annotations {output} is a folder: name a file" in capsys.readouterr().err


def test_an_export_finds_each_of_its_images_again(tmp_path: Path) -> None:
    """Images of two archives have equal keys, and one key is a part of another name."""
    tars = [f"file:///lake/{name}.tar" for name in ("a", "b")]
    images = [
        Labelled(f"{tar}#{key}", random_boxes(number, 5), shard=tar, uri=tar)
        for number, (tar, key) in enumerate((tar, key) for tar in tars for key in ("1", "2"))
    ]
    images += [Labelled(f"file:///lake/1.{part}.png", random_boxes(9, 3)) for part in "xy"]
    output = write_run(tmp_path / "out", images, labelled.LABELS)
    exported = str(tmp_path / "coco.json")
    assert main(["export", output, exported, "--to", "coco"]) == 0
    found = evaluate(output, exported)
    assert found["images"]["matched_by"] == {"row": 6}
    assert found["metrics"]["AP"] == pytest.approx(1)
