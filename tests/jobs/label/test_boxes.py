"""`label` with rules for boxes gives what the rules give of all boxes, at once or afterwards."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import yaml
from PIL import Image

from jobs.boxes.choice import choose_boxes, named_classes
from jobs.boxes.options import BoxOptions
from jobs.cli import main
from jobs.demo.scenes import scene
from jobs.output.catalog import committed_runs
from jobs.output.run_documents import read_document
from model.config import SHAPE_LABELS
from tests.support.alone_commands import kill_before_publishing, run_commands

pytestmark = pytest.mark.slow
LABEL = ["label", "lake", "--model", "shapes-tiny", "--no-page", "--precision", "fp32"]
NAMES = {"circle": "round", "ring": "round", "star": "cross", "heart": "love"}
RULES = [
    *("--nms", "0.5", "--nms-across-classes", "0.8", "--min-size", "12"),
    *("--classes", "circle,2,square,star,cross,heart", "--thresholds", "circle=0.2,cross=0.05"),
    *("--rename", "names.json"),
]
NMS = ["--nms", "0.4", "--nms-across-classes", "0.6"]
TILES = ["--tile", "88", "--tile-overlap", "0.3"]
OF_TILES = ["--nms", "0.4", "--min-size", "40", "--classes", "circle,2,square,star"]
SCENES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of scenes, labelled without rules, with them, in two attempts, and with NMS alone."""
    folder = tmp_path_factory.mktemp("boxes")
    (folder / "lake").mkdir()
    for number in range(SCENES):
        Image.fromarray(scene(5, number, (320, 240)).pixels).save(folder / f"lake/{number}.png")
    (folder / "names.json").write_text(json.dumps(NAMES))

    def label(output: str, *options: str, threshold: str = "0.1") -> list[str]:
        return [*LABEL, output, "--score-threshold", threshold, *options]

    done = run_commands(
        folder,
        label("plain", threshold="0"),
        label("ruled", *RULES),
        label("nms", *NMS, threshold="0"),
        label("tiled", *TILES, threshold="0"),
        label("tiled-ruled", *TILES, *OF_TILES, threshold="0"),
    )
    assert all(code == 0 for code, _ in done), "\n".join(said for _, said in done)
    kill_before_publishing(folder, label("resumed", *RULES), folder / "resumed")
    blocks = sorted((folder / "resumed").glob("_staging/*/blocks/*"))
    assert len(blocks) == SCENES // 2
    blocks[0].unlink()
    others = json.dumps({**NAMES, "heart": "hate"})
    (folder / "others.json").write_text(others)
    refused, resumed, without = run_commands(
        folder,
        label("resumed", *RULES[:-1], "others.json"),
        label("resumed", *RULES),
        label("resumed"),
    )
    assert refused[0] == 2 and "holds an unfinished run" in refused[1], refused
    assert '--rename \'{"circle": "round"' in refused[1]  # the file may have changed
    assert resumed[0] == 0, resumed
    assert without[0] == 2 and "weights and threshold, and --nms 0.5" in without[1], without
    return folder


def rows(output: Path) -> list[tuple[Any, ...]]:
    sql = (
        "SELECT image_id, label_id, label, score, x_min, y_min, x_max, y_max "
        f"FROM read_parquet('{output}/detections/*/*.parquet', hive_partitioning = false) "
        "ORDER BY image_id, detection"
    )
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()


def test_labels_are_those_that_the_rules_leave_of_all_labels(folder: Path) -> None:
    options = BoxOptions(
        nms=0.5,
        nms_across_classes=0.8,
        min_size=12.0,
        classes="circle,2,square,star,cross,heart",
        thresholds="circle=0.2,cross=0.05",
        rename=json.dumps(NAMES),
    )
    choice = choose_boxes(options, named_classes(SHAPE_LABELS), 0.1)
    expected = []
    everything = rows(folder / "plain")
    for image in sorted({row[0] for row in everything}):
        own = [row for row in everything if row[0] == image]
        values = np.array([row[3:] for row in own], np.float32)
        labels = np.array([row[1] for row in own])
        kept, new = choice.rules.select(values[:, 0], labels, values[:, 1:], 0.1)
        expected += [
            (image, number, choice.names[number], *own[at][3:])
            for at, number in zip(kept.tolist(), new.tolist(), strict=True)
        ]
    found = rows(folder / "ruled")
    assert found == expected
    assert {row[2] for row in found} <= {"round", "square", "cross", "love"}
    assert 10 < len(found) < len(everything) / 5


def test_labels_of_tiles_are_those_that_the_rules_leave_of_joined_boxes(folder: Path) -> None:
    """The size of a box, and what suppresses it, are those of joined boxes."""
    options = BoxOptions(nms=0.4, min_size=40.0, classes="circle,2,square,star")
    rules = choose_boxes(options, named_classes(SHAPE_LABELS), 0.0).rules
    everything, expected = rows(folder / "tiled"), []
    for image in sorted({row[0] for row in everything}):
        own = [row for row in everything if row[0] == image]
        values = np.array([row[3:] for row in own], np.float32)
        labels = np.array([row[1] for row in own])
        kept, _ = rules.select(values[:, 0], labels, values[:, 1:])
        expected += [own[at] for at in kept]
    found = rows(folder / "tiled-ruled")
    assert found == expected
    assert SCENES < len(found) < len(everything) / 5
    longest = max(max(row[6] - row[4], row[7] - row[5]) for row in found)
    assert longest > 88  # no tile shows it entirely


def test_a_run_that_was_cut_off_publishes_the_same(folder: Path) -> None:
    assert rows(folder / "resumed") == rows(folder / "ruled")


def test_the_documents_of_a_run_say_which_boxes_it_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = committed_runs(str(folder / "ruled"))
    plain = {**NAMES, "circle": "round", "ring": "", "star": ""}
    assert run["labels"] == [plain.get(name, name) for name in SHAPE_LABELS]
    options = read_document(str(folder / "ruled"), run["run_id"], "run.json")["options"]
    assert (options["nms"], json.loads(options["rename"])) == (0.5, NAMES)
    fingerprints = {
        committed_runs(str(folder / name))[0]["model_fingerprint"] for name in ("plain", "ruled")
    }
    assert len(fingerprints) == 2
    near = read_document(str(folder / "nms"), run_id(folder / "nms"), "report.json")
    assert near["near_duplicates"] == {"iou": 0.7, "same_class": 0, "any_class": 0}
    near = read_document(str(folder / "plain"), run_id(folder / "plain"), "report.json")
    assert near["near_duplicates"]["any_class"] >= near["near_duplicates"]["same_class"] > 0
    assert main(["report", str(folder / "plain")]) == 0
    assert "of boxes of one class with an IoU above 0.7" in capsys.readouterr().out


def run_id(output: Path) -> str:
    (run,) = committed_runs(str(output))
    return run["run_id"]


@pytest.mark.parametrize("to", ["coco", "yolo", "csv"])
def test_an_export_with_the_rules_is_that_of_labels_made_with_them(
    to: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    given = ["--to", to]
    assert main(["export", "ruled", str(tmp_path / "a"), *given]) == 0
    rules = ["--min-score", "0.1", *RULES]
    assert main(["export", "plain", str(tmp_path / "b"), *given, *rules]) == 0
    if to == "coco":
        a, b = (json.loads((tmp_path / name).read_text()) for name in "ab")
        assert a["annotations"] == b["annotations"] and a["images"] == b["images"]
        ids = {one["id"]: one["name"] for one in b["categories"]}
        assert ids == {1: "round", 3: "square", 6: "cross", 7: "love"}
        assert all(one in a["categories"] for one in b["categories"])
        return
    if to == "yolo":
        names = yaml.safe_load((tmp_path / "b/data.yaml").read_text())["names"]
        left = ["round", "square", "triangle", "cross", "love", "crescent", "arrow", "hourglass"]
        assert names == dict(enumerate(left))
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*"))
    assert [
        path.relative_to(tmp_path / "b") for path in sorted((tmp_path / "b").rglob("*"))
    ] == files
    for file in files or [Path()]:
        a_file, b_file = tmp_path / "a" / file, tmp_path / "b" / file
        assert a_file.is_dir() or a_file.read_bytes() == b_file.read_bytes()


def test_queries_and_scores_without_suppressed_boxes_are_those_of_labels_without_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sql = (
        "SELECT image_id, num_detections, label, score, x_min, y_max FROM latest "
        "JOIN latest_images USING (image_id) ORDER BY ALL"
    )
    answers = []
    for output, options in (("nms", []), ("plain", NMS), ("plain", [*NMS, "--present-only"])):
        assert main(["query", str(folder / output), sql, "--format", "csv", *options]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2]
    truth = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(SCENES)],
        "categories": [{"id": k, "name": name} for k, name in named_classes(SHAPE_LABELS).items()],
        "annotations": [
            {"id": 100 * n + k, "image_id": n, "category_id": int(label), "bbox": box, "iscrowd": 0}
            for n in range(SCENES)
            for k, (label, box) in enumerate(annotations(n))
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    metrics = []
    for output, options in (("nms", []), ("plain", NMS), ("plain", [])):
        words = ["evaluate", str(folder / output), str(tmp_path / "truth.json"), "--json"]
        assert main([*words, *options]) == 0
        metrics.append(json.loads(capsys.readouterr().out))
    assert metrics[0]["metrics"] == metrics[1]["metrics"] != metrics[2]["metrics"]
    assert metrics[1]["boxes"]["suppressed"] > 100


def annotations(number: int) -> list[tuple[int, list[float]]]:
    made = scene(5, number, (320, 240))
    corners = [tuple(map(float, box)) for box in made.boxes]
    return [
        (label, [x0, y0, x1 - x0, y1 - y0])
        for label, (x0, y0, x1, y1) in zip(made.labels.tolist(), corners, strict=True)
    ]
