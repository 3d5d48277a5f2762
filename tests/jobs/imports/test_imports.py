"""Imported detections of other models become a run that all commands can use."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.evaluate.evaluate import evaluate
from jobs.imports.imports import import_results
from jobs.imports.options import ImportOptions
from jobs.output import paths
from jobs.output.catalog import committed_runs
from jobs.report.reports import report_of
from pipeline.storage.files import open_location
from tests.support.damage import DAMAGES
from tests.support.labelled import LABELS, SOURCE, Labelled, random_boxes, write_run
from tests.support.tables import rows

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}]
IMAGES = [
    {"id": 10, "file_name": "album/a.jpg", "width": 400, "height": 300},
    {"id": 11, "file_name": "b.jpg", "width": 640, "height": 480},
    {"id": "c", "file_name": "c.jpg", "width": 100, "height": 100},
]
ENTRIES: list[dict[str, Any]] = [
    {"image_id": 11, "category_id": 3, "bbox": [1.5, 2, 30, 40.25], "score": 0.25},
    {"image_id": "10", "category_id": 1, "bbox": [-3, 0, 10, 10], "score": 1, "segmentation": {}},
    {"image_id": 11, "category_id": 1, "bbox": [5, 6, 0, 8], "score": 0.75},
]
BOXES = "SELECT image_id, detection, label_id, label, score, x_min, y_min, x_max, y_max FROM latest"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """The paths of DETECTIONS and of the annotation file."""
    return write(tmp_path, "results[1].json", ENTRIES), write(tmp_path, "truth.json", document())


def document(**changes: Any) -> dict[str, Any]:
    return {"images": IMAGES, "annotations": [], "categories": CATEGORIES, **changes}


def write(folder: Path, name: str, content: Any) -> str:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder / name)


def bring(files: tuple[str, str], output: object, *options: str) -> int:
    detections, annotations = files
    return main(["import", detections, str(output), "--annotations", annotations, *options])


def test_images_and_boxes_are_rows(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    assert bring(files, output) == 0
    said = capsys.readouterr().err
    assert "3 boxes of 3 images, by the model results[1] (--model gives another name), in" in said
    assert "1 box beyond the border of the image" in said
    assert "kept as they are: 1 box without an area" in said
    assert "empty" not in said
    assert rows(output, f"{BOXES} ORDER BY ALL") == [
        ("album/a.jpg", 0, 1, "dog", 1.0, -3.0, 0.0, 7.0, 10.0),
        ("b.jpg", 0, 1, "dog", 0.75, 5.0, 6.0, 5.0, 14.0),
        ("b.jpg", 1, 3, "cat", 0.25, 1.5, 2.0, 31.5, 42.25),
    ]
    sql = (
        "SELECT image_id, uri, status, width, height, num_detections, max_score, model FROM images"
    )
    assert rows(output, f"{sql} ORDER BY index_in_shard") == [
        ("album/a.jpg", "album/a.jpg", "ok", 400, 300, 1, 1.0, "results[1]"),
        ("b.jpg", "b.jpg", "ok", 640, 480, 2, 0.75, "results[1]"),
        ("c.jpg", "c.jpg", "ok", 100, 100, 0, None, "results[1]"),
    ]
    report = report_of(output)
    assert (report["images"], report["ok"], report["detections"]) == (3, 3, 3)
    assert main(["report", output]) == 0
    assert not list((tmp_path / "out" / "_staging").rglob("*.parquet"))


def test_images_are_named_as_label_names_them(files: tuple[str, str], tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    assert bring(files, output, "--images", str(tmp_path / "photos"), "--model", "other") == 0
    found = [image_id for (image_id,) in rows(output, "SELECT image_id FROM images ORDER BY 1")]
    names = ("album/a.jpg", "b.jpg", "c.jpg")
    assert found == [f"file://{tmp_path}/photos/{name}" for name in names]
    assert committed_runs(output)[0]["model"] == "other"


def test_names_that_are_addresses_lose_their_secrets(tmp_path: Path) -> None:
    signed = "https://me:SECRET@lake/a.jpg?size=9&token=SECRET&X-Amz-Signature=SECRET"
    image = {**IMAGES[0], "file_name": signed}
    annotations = write(tmp_path, "truth.json", document(images=[image]))
    assert bring((write(tmp_path, "found.json", []), annotations), tmp_path / "out") == 0
    found = rows(str(tmp_path / "out"), "SELECT image_id, uri FROM images")
    assert found == [("https://lake/a.jpg?size=9",) * 2]


def test_the_same_detections_come_in_once(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert bring(files, output, "--model", "m") == 0
    copy = write(tmp_path, "copy.json", ENTRIES)
    assert bring((copy, files[1]), output, "--model", "m") == 0
    assert "nothing new" in capsys.readouterr().out
    assert len(committed_runs(str(output))) == 1
    newer = write(tmp_path, "newer.json", ENTRIES[:1])
    assert bring((newer, files[1]), output) == 2
    assert "import them into another OUTPUT" in capsys.readouterr().err
    assert bring((newer, files[1]), output, "--model", "m") == 0
    assert len(committed_runs(str(output))) == 2


def found_by(output: Path, category: int) -> list[tuple[Any, ...]]:
    return rows(str(output), f"SELECT score FROM latest WHERE label_id = {category}")


def test_detections_stay_known_when_their_runs_are_compacted(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, older, newer = tmp_path / "out", Path(files[0]).read_bytes(), b"[]"
    for content in (older, newer):  # one file, so that the runs are merged
        Path(files[0]).write_bytes(content)
        assert bring(files, output, "--model", "m") == 0
    assert main(["compact", str(output)]) == 0
    (merged,) = committed_runs(str(output))
    assert found_by(output, 3) == []
    copy = tmp_path / "copy.json"
    for content in (older, newer, older):
        copy.write_bytes(content)
        for name in (files[0], str(copy)):
            Path(name).write_bytes(content)
            capsys.readouterr()
            assert bring((name, files[1]), output, "--model", "m") == 0
            assert "nothing new" in capsys.readouterr().out
    assert committed_runs(str(output)) == [merged]
    assert main(["runs", str(output), "--delete", merged["run_id"], "--yes"]) == 0
    assert bring(files, output, "--model", "m") == 0
    assert found_by(output, 3) == [(0.25,)]


def test_an_output_of_labels_takes_none(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    write_run(output, [Labelled(f"{SOURCE}/a.jpg", random_boxes(1, 2))], LABELS, source=SOURCE)
    assert bring(files, output) == 2
    assert (
        "holds labels of made-by-hand over file:///lake (fingerprint f00d)"
        in capsys.readouterr().err
    )
    assert len(committed_runs(output)) == 1


def test_an_output_with_an_unfinished_run_takes_none(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "out/_staging/20260101T000000Z-000001/plan.parquet"
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"")
    assert bring(files, tmp_path / "out") == 2
    assert "holds an unfinished run of `label`" in capsys.readouterr().err
    assert plan.exists()


def entry(**changes: Any) -> list[dict[str, Any]]:
    return [ENTRIES[0], {**ENTRIES[1], **changes}, ENTRIES[2]]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (entry(score=1.25), "bad.json: entry 2 (image_id '10'): score 1.25 is not between 0"),
        (entry(category_id=2), "category_id 2 is of no category in --annotations"),
        (entry(category_id="ox"), "'ox' is not a whole number of 64 bits, nor the name of a cate"),
        (entry(image_id="b.jpg"), "image_id b.jpg is of no image in --annotations: all entries"),
        (entry(image_id=12), "bad.json: entry 2: image_id 12 is of no image in --annotations"),
        (
            [{**ENTRIES[0], "image_id": 12}] * 3,
            "entry 1: image_id 12 is of no image in --annotations (one of 3 such entries)",
        ),
        ({"annotations": ENTRIES}, "is not a JSON list"),
    ],
)
def test_detections_that_cannot_be_used(
    entries: Any,
    message: str,
    files: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bring((write(tmp_path, "bad.json", entries), files[1]), tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith(f"detr-batch: DETECTIONS {tmp_path / 'bad.json'}")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("b.jpg", "album/a.jpg"), "images are matched by file_name, not by id"),
        (("b", "a"), "images are matched by file_name without folder and extension, not by id"),
    ],
)
def test_names_stand_for_images_and_categories(
    names: tuple[str, str],
    said: str,
    files: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bring(files, tmp_path / "by id") == 0
    assert "matched by" not in capsys.readouterr().err
    image_names, category_names = {11: names[0], "10": names[1]}, {3: "cat", 1: "dog"}
    named = [
        {
            **one,
            "image_id": image_names[one["image_id"]],
            "category_id": category_names[one["category_id"]],
        }
        for one in ENTRIES
    ]
    results = write(tmp_path, "named.json", named)
    assert bring((results, files[1]), tmp_path / "by name") == 0
    assert said in capsys.readouterr().err
    found = [rows(str(tmp_path / how), f"{BOXES} ORDER BY ALL") for how in ("by id", "by name")]
    assert found[0] == found[1] and len(found[0]) == 3


def image(**changes: Any) -> dict[str, Any]:
    return document(images=[*IMAGES[:2], {**IMAGES[2], **changes}])


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        (image(id=10), "bad.json: two images have the id 10"),
        (image(id=None), "bad.json: image 3 (file_name 'c.jpg'): it has no id"),
        (image(file_name="b.jpg"), "bad.json: two images have the file_name b.jpg"),
        (image(file_name=None), "image 3 (id 'c'): it has no file_name"),
        (image(width=0), "image 3 (id 'c', file_name 'c.jpg'): its size is 0 x 100"),
        (image(height=None), "its size is 100 x None"),
        (document(images=[]), "bad.json has no images"),
        (document(categories=[]), "bad.json has no categories"),
        (document(categories=[{"id": 10**9, "name": "ox"}]), "'ox' has the id 1000000000: give"),
    ],
)
def test_annotations_that_cannot_be_used(
    annotations: Any,
    message: str,
    files: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bring((files[0], write(tmp_path, "bad.json", annotations)), tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith(f"detr-batch: --annotations {tmp_path / 'bad.json'}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "emptied", "bit 5 at 0.0", "bit 7 at 0.3"])
@pytest.mark.parametrize("position", [0, 1], ids=["detections", "annotations"])
def test_damaged_files_are_exit_code_1(
    position: int,
    damage: str,
    files: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Schedulers try again, and the file may be whole then."""
    file = Path(files[position])
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert bring(files, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"detr-batch: {('DETECTIONS', '--annotations')[position]}")
    assert said.count("\n") == 1 and "--debug" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    ["../c.jpg", "/c.jpg", "x/../../c.jpg", "http://host/c.jpg", ".", "..\\c.jpg", "C:\\x\\c.jpg"],
)
def test_names_that_lead_out_of_the_pictures(
    name: str, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = write(tmp_path, "bad.json", image(file_name=name))
    assert bring((files[0], annotations), tmp_path / "out", "--images", "s3://lake/photos") == 2
    assert "lies outside of --images" in capsys.readouterr().err


def test_names_of_windows_lie_below_the_folder_of_images(
    files: tuple[str, str], tmp_path: Path
) -> None:
    output, lake = str(tmp_path / "out"), tmp_path / "photos"
    annotations = write(tmp_path, "windows.json", image(file_name="album\\c.jpg"))
    assert bring((files[0], annotations), output, "--images", str(lake)) == 0
    (found,) = rows(output, "SELECT image_id FROM latest_images WHERE image_id LIKE '%c.jpg'")
    assert found == (f"file://{lake}/album/c.jpg",)


def test_hostile_names_are_kept_as_text(files: tuple[str, str], tmp_path: Path) -> None:
    name = "../\x1b[2J<b>'; DROP TABLE images"
    annotations = write(tmp_path, "odd.json", image(file_name=name))
    output = str(tmp_path / "out")
    assert bring((files[0], annotations), output) == 0
    found = rows(output, "SELECT image_id FROM images WHERE num_detections = 0")
    assert found == [(name,)]
    assert main(["export", output, str(tmp_path / "yolo"), "--to", "yolo"]) == 0
    assert len(list((tmp_path / "yolo" / "labels").rglob("*.txt"))) == 3


def test_from_and_to_a_bucket(bucket: str, files: tuple[str, str], tmp_path: Path) -> None:
    fs, path = open_location(bucket, "INPUT")
    for number, file in enumerate(files):
        fs.put_file(file, f"{path}/{number}.json")
    output = f"{bucket}/out"
    options = ImportOptions(f"{bucket}/0.json", output, f"{bucket}/1.json")
    for _ in range(2):
        import_results(options)
    assert len(rows(output, BOXES)) == 3
    assert main(["export", output, str(tmp_path / "coco.json"), "--to", "coco"]) == 0


KILLED = """
import os, sys
from jobs.imports import imports
imports.commit_run = lambda *_: os._exit(9)
imports.import_results(imports.ImportOptions(*sys.argv[1:]))
"""


def test_a_killed_import_leaves_nothing_behind_the_next(
    files: tuple[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, files[0], str(output), files[1]]
    assert subprocess.run(command, check=False).returncode == 9
    (output / paths.LOCK).unlink()  # its lease has ended
    assert len(list(output.glob("images/*/*.parquet"))) == 1
    assert bring(files, output) == 0
    (left,) = output.glob("images/*/*.parquet")
    assert committed_runs(str(output))[0]["run_id"] in str(left)
    assert len(rows(str(output), BOXES)) == 3


@pytest.mark.slow
def test_detections_of_a_published_model_keep_their_figures(testdata: Path, tmp_path: Path) -> None:
    """They are of DEIMv2 on 55 photos: the boxes stay equal, and AP is that of pycocotools."""
    detections = testdata / "coco/detections/deimv2_atto_public55.json"
    annotations = testdata / "coco/annotations/instances_val2017_public55.json"
    output, file = tmp_path / "out", tmp_path / "coco.json"
    assert bring((str(detections), str(annotations)), output) == 0
    assert main(["export", str(output), str(file), "--to", "coco"]) == 0
    truth, made = json.loads(annotations.read_text()), json.loads(file.read_text())
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    names = {image["id"]: ids[image["file_name"]] for image in made["images"]}
    assert len(names) == 55
    found = [{**box, "image_id": names[box["image_id"]]} for box in made["annotations"]]
    wanted = json.loads(detections.read_text())
    kept = ("image_id", "category_id", "score")

    def order(box: dict[str, Any]) -> tuple[Any, ...]:
        return box["image_id"], -round(box["score"], 6), box["category_id"], box["bbox"]

    assert len(found) == len(wanted) == 16_500
    for one, other in zip(sorted(found, key=order), sorted(wanted, key=order), strict=True):
        assert [one[name] for name in kept] == pytest.approx([other[name] for name in kept])
        assert one["bbox"] == pytest.approx(other["bbox"], abs=2e-4)
    page = tmp_path / "page.html"
    assert main(["report", str(output), "--html", str(page)]) == 0
    assert "images per second" not in page.read_text()
    score = evaluate(str(output), str(annotations))["metrics"]
    assert [round(score[name], 4) for name in ("AP", "AP50", "AP75")] == [0.2649, 0.3923, 0.2760]


def test_published_pair_keeps_its_figures(testdata: Path, tmp_path: Path) -> None:
    """The twelve numbers that pycocotools publishes with its example."""
    folder = testdata / "eval_pairs"
    detections = folder / "instances_val2014_fakebbox100_results.json"
    annotations = folder / "instances_val2014_100.json"
    assert bring((str(detections), str(annotations)), tmp_path / "out") == 0
    score = evaluate(str(tmp_path / "out"), str(annotations))["metrics"]
    assert [round(value, 3) for value in score.values()] == [
        0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564,
    ]  # fmt: skip
