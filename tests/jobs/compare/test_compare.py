"""`compare` counts new, gone and changed boxes by class, and the images of only one side."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.cli import main
from jobs.compact import compact
from jobs.compare import box_pairs
from jobs.compare import compare as module
from jobs.compare.changes import Spread
from jobs.compare.compare import compare
from jobs.compare.options import Comparison
from jobs.compare.text import CLASSES, as_text
from jobs.evaluate.evaluate import evaluate
from jobs.output.catalog import committed_runs
from jobs.output.run_documents import write_document, write_record
from pipeline.storage.files import InputError, open_location
from tests.support.labelled import Box, Labelled, write_run

LABELS = ("", "cat", "dog")
RUNS = ("20260101T000000Z-aaaaaa", "20260102T000000Z-bbbbbb")


def box_at(x: float, label: int = 1, score: float = 0.9) -> Box:
    return Box(label, score, x, 0.0, x + 10, 10.0)


def write_and_compare(
    folder: Path, a: list[Labelled], b: list[Labelled], **options: Any
) -> dict[str, Any]:
    sides = [write_run(folder / name, rows, LABELS) for name, rows in (("a", a), ("b", b))]
    return compare(Comparison(sides[0], sides[1], **options))


def test_every_kind_of_change_is_counted_once(tmp_path: Path) -> None:
    a = [
        Labelled("x/1.jpg", [box_at(0), box_at(100), box_at(200), box_at(300, 2)]),
        Labelled("x/2.jpg", [box_at(0)]),
    ]
    b = [
        Labelled(
            "x/1.jpg", [box_at(1, score=0.7), box_at(200, 2, 0.8), box_at(300, 2), box_at(400, 2)]
        ),
        Labelled("x/2.jpg", [box_at(0)]),
    ]
    result = write_and_compare(tmp_path, a, b)
    boxes = result["boxes"]
    counted = {name: boxes[name] for name in ("matched", "class_changed", "gone", "new")}
    assert counted == {"matched": 3, "class_changed": 1, "gone": 1, "new": 1}
    cat, dog = result["by_class"]
    assert (cat["name"], cat["a"], cat["b"], cat["gone"], cat["to_other_class"]) == (
        "cat",
        4,
        2,
        1,
        1,
    )
    assert (dog["name"], dog["a"], dog["b"], dog["new"], dog["from_other_class"]) == (
        "dog",
        1,
        3,
        1,
        1,
    )
    assert cat["score_drift"] == {"mean": -0.1, "p10": -0.2, "p50": -0.2, "p90": 0.0}
    assert cat["iou"]["p10"] == pytest.approx(9 / 11, abs=1e-4)
    assert result["class_changes"] == [{"from": "cat", "to": "dog", "boxes": 1}]
    assert (result["images"]["compared"], result["images"]["unchanged"]) == (2, 1)
    (most,) = result["most_different"]
    assert most["image_a"] == "x/1.jpg" and (most["new"], most["gone"]) == (1, 1)
    assert most["difference"] == pytest.approx(0.9 + 0.9 + 0.9 + 0.2)


def test_classes_stand_by_their_differences_and_the_text_has_the_first(tmp_path: Path) -> None:
    """Class number n has n boxes that are gone, apart from three with other differences."""
    labels = ("", *(f"class{n:02}" for n in range(1, 31)))
    gone = [box_at(50 * i, n) for n in range(4, 31) for i in range(n)]
    kept = [box_at(0, n) for n in (1, 2, 3)]
    images = {"a": [*kept, *gone], "b": [kept[0], box_at(0, 3), box_at(0, 2), box_at(70, 3)]}
    sides = [
        write_run(tmp_path / name, [Labelled("x.jpg", boxes)], labels)
        for name, boxes in images.items()
    ]
    result = compare(Comparison(sides[0], sides[1]))
    classes = result["by_class"]
    assert [one["name"] for one in classes[:2]] == ["class30", "class29"]
    found = {one["name"]: one["differences"] for one in classes}
    assert found == {
        **{labels[n]: n for n in range(4, 31)},
        "class01": 0,
        "class02": 0,
        "class03": 1,
    }
    assert [one["name"] for one in classes[-3:]] == ["class03", "class01", "class02"]
    for one in classes:
        changed = one["to_other_class"] + one["from_other_class"]
        assert one["differences"] == one["gone"] + one["new"] + changed
    for name in ("a", "b", "matched", "gone", "new"):
        assert sum(one[name] for one in classes) == result["boxes"][name]
    text = as_text(result)
    assert text.count("\nclass") == 1 + CLASSES
    assert "\nand 10 more classes; --json has all" in text


def test_images_of_only_one_side_are_counted_and_their_boxes_are_no_changes(tmp_path: Path) -> None:
    a = [
        Labelled("x/both.jpg", [box_at(0)]),
        Labelled("x/a.jpg", [box_at(0)]),
        Labelled("x/broke.jpg", [box_at(0)]),
        Labelled("x/mended.jpg", status="truncated"),
        Labelled("x/bad.jpg", status="truncated"),
    ]
    b = [
        Labelled("x/both.jpg", [box_at(0)], etag="other"),
        Labelled("x/broke.jpg", status="truncated"),
        Labelled("x/mended.jpg", [box_at(0)]),
        Labelled("x/bad.jpg", status="truncated"),
        Labelled("x/b1.jpg"),
        Labelled("x/b2.jpg"),
    ]
    result = write_and_compare(tmp_path, a, b)
    counts = {name: value for name, value in result["images"].items() if value}
    assert counts.pop("examples") == {"only_a": ["x/a.jpg"], "only_b": ["x/b1.jpg", "x/b2.jpg"]}
    assert counts == {
        "a": 5, "b": 6, "compared": 1, "failed_a": 1, "failed_b": 1, "failed_both": 1,
        "only_a": 1, "only_b": 2, "other_content": 1, "unchanged": 1,
    }  # fmt: skip
    assert (result["boxes"]["a"], result["boxes"]["new"], result["boxes"]["gone"]) == (1, 0, 0)
    assert "2            only in b (x/b1.jpg, x/b2.jpg)" in as_text(result)


def test_boxes_below_the_threshold_of_the_other_side_are_no_changes(tmp_path: Path) -> None:
    low, high = box_at(0, score=0.3), box_at(100, score=0.9)
    write_run(tmp_path / "a", [Labelled("x.jpg", [low, high])], LABELS, score_threshold=0.3)
    write_run(tmp_path / "b", [Labelled("x.jpg", [high])], LABELS, score_threshold=0.5)
    result = compare(Comparison(str(tmp_path / "a"), str(tmp_path / "b")))
    assert (result["boxes"]["gone"], result["boxes"]["gone_below_threshold"]) == (0, 1)
    assert result["images"]["unchanged"] == 1
    assert "1 only in a, below the threshold of b" in as_text(result)
    back = compare(Comparison(str(tmp_path / "b"), str(tmp_path / "a")))
    assert (back["boxes"]["new"], back["boxes"]["new_below_threshold"]) == (0, 1)
    same = compare(Comparison(str(tmp_path / "a"), str(tmp_path / "a")))
    assert (same["boxes"]["matched"], same["boxes"]["gone_below_threshold"]) == (2, 0)


def test_two_runs_of_one_output_are_compared(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    for run, x in zip(RUNS, (0, 50), strict=True):
        write_run(tmp_path / "out", [Labelled("x.jpg", [box_at(x)], etag=run)], LABELS, run)
    newest = compare(Comparison(output, output))
    assert newest["images"]["unchanged"] == 1
    result = compare(Comparison(output, output, *RUNS))
    assert (result["boxes"]["gone"], result["boxes"]["new"]) == (1, 1)
    assert result["images"]["other_content"] == 1
    with pytest.raises(InputError, match=f"no such finished run; .* {RUNS[1]}"):
        compare(Comparison(output, output, run_b="nothing"))


def test_images_with_equal_ids_in_different_files_are_different(tmp_path: Path) -> None:
    """The id columns of several Parquet files may hold equal ids."""
    rows = [Labelled("1", [box_at(100 * i)], shard=f"s{i}", uri=f"s{i}") for i in range(3)]
    result = write_and_compare(tmp_path, rows, list(reversed(rows)))
    assert (result["images"]["compared"], result["images"]["unchanged"]) == (3, 3)


def test_copies_of_a_lake_are_compared_by_name(tmp_path: Path) -> None:
    tar = "s3://lake/x.tar"
    a = [Labelled("file:///lake/1.jpg", [box_at(0)]), Labelled("file:///lake/2.jpg", [box_at(0)])]
    b = [
        Labelled("s3://lake/1.png", [box_at(0)]),
        Labelled(f"{tar}#2", [box_at(0)], shard=tar, uri=tar),
    ]
    with pytest.raises(InputError, match=r"file:///lake/1\.jpg .* s3://lake/.* --by-name"):
        write_and_compare(tmp_path, a, b)
    result = compare(Comparison(str(tmp_path / "a"), str(tmp_path / "b"), by_name=True))
    assert result["images"]["unchanged"] == 2


def test_sums_do_not_depend_on_how_much_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)

    def boxes() -> list[Box]:
        kinds, scores = rng.integers(1, 3, 40), rng.random(40)
        return [
            box_at(x, k, s)
            for x, k, s in zip(rng.random(40) * 100, kinds.tolist(), scores, strict=True)
        ]

    a, b = ([Labelled(f"x/{i}.jpg", boxes()) for i in range(150)] for _ in range(2))
    whole = write_and_compare(tmp_path, a, b)
    assert 0 < whole["boxes"]["matched"] < 6000
    monkeypatch.setattr(module, "ROWS", 2048)  # the least that DuckDB allows
    parts = compare(Comparison(str(tmp_path / "a"), str(tmp_path / "b")))
    for one, other in zip(whole["by_class"], parts["by_class"], strict=True):
        assert one.pop("score_drift") == pytest.approx(other.pop("score_drift"))
        assert one.pop("iou") == pytest.approx(other.pop("iou"))
        assert one == other
    assert whole["class_changes"] == parts["class_changes"]
    numbers = [[one["pair"] for one in result["most_different"]] for result in (whole, parts)]
    assert numbers[0] == numbers[1] and len(numbers[0]) == 20


def test_a_spread_knows_quantiles_to_a_ten_thousandth() -> None:
    rng = np.random.default_rng(0)
    kinds, values = rng.integers(0, 3, 9000), rng.normal(0, 0.2, 9000).clip(-1, 1)
    spread = Spread(3, -1.0)
    for part in np.array_split(np.arange(9000), 7):
        spread.add(kinds[part], values[part])
    for kind in (None, 0, 1, 2):
        chosen = values if kind is None else values[kinds == kind]
        found = spread.of(kind)
        assert found is not None
        assert found["mean"] == pytest.approx(chosen.mean(), abs=1e-6)
        for name, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
            expected = np.quantile(chosen, share, method="inverted_cdf")
            assert found[name] == pytest.approx(expected, abs=1.01e-4)
    assert Spread(1, 0.0).of() is None


def test_the_command_line_prints_text_or_json_and_refuses_wrong_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = Labelled("\x1b[2Jx.jpg", [box_at(0)])
    sides = [
        write_run(tmp_path / "a", [hostile], LABELS),
        write_run(tmp_path / "b", [replace(hostile, boxes=[])], LABELS),
    ]
    assert main(["compare", *sides]) == 0
    text = capsys.readouterr().out
    assert "\\x1b[2Jx.jpg" in text and "\x1b" not in text
    assert main(["compare", *sides, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["boxes"]["gone"] == 1
    assert main(["compare", *sides, "--iou", "0"]) == 2
    assert "--iou 0: give a number above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_labels_in_a_bucket_are_compared_with_labels_on_a_disk(tmp_path: Path, bucket: str) -> None:
    here = write_run(tmp_path / "a", [Labelled("x.jpg", [box_at(0), box_at(50)])], LABELS)
    write_run(tmp_path / "b", [Labelled("x.jpg", [box_at(0)])], LABELS)
    fs, path = open_location(bucket, "OUTPUT")
    fs.put(str(tmp_path / "b"), path, recursive=True)
    assert compare(Comparison(here, bucket))["boxes"]["gone"] == 1
    assert compare(Comparison(bucket, bucket))["images"]["unchanged"] == 1
    truth = {
        "images": [{"id": 1, "file_name": "x.jpg"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}],
    }
    fs.pipe_file(f"{path}/truth.json", json.dumps(truth).encode())
    assert evaluate(bucket, f"{bucket}/truth.json")["metrics"]["AP"] == pytest.approx(1)


@pytest.mark.slow
def test_thresholds_that_differ_are_said_on_the_page_and_in_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = [Box(1, 0.9, 0, 0, 9, 9), Box(0, 0.8, 20, 20, 40, 40)]
    sides = [
        write_run(
            tmp_path / str(threshold), [Labelled("1.jpg", boxes)], ("", "cat"),
            score_threshold=threshold,
        )
        for threshold in (0.3, 0.5)
    ]  # fmt: skip
    assert main(["compare", *sides]) == 0
    text = capsys.readouterr().out
    assert "The score thresholds differ: 0.3 in a, 0.5 in b" in text
    assert text.count("1 boxes, whose classes have no name") == 2
    assert "(no name)" not in text and "boxes          1 in a, 1 in b" in text
    assert main(["compare", *sides, "--html", str(tmp_path / "page.html")]) == 0
    assert "The score thresholds differ" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "The score thresholds differ" in page and "have no name" in page
    assert main(["compare", sides[0], sides[0]]) == 0
    assert "differ:" not in capsys.readouterr().out


def test_what_decided_the_bits_of_each_side_is_shown(tmp_path: Path) -> None:
    """A run says it when it begins, and its report for each kind of detector; `compact` adds up."""
    images = [Labelled("x/1.jpg", [box_at(0)])]
    a, b = (write_run(tmp_path / name, images, LABELS, RUNS[0]) for name in ("a", "b"))
    write_run(tmp_path / "b", [Labelled("x/2.jpg", [box_at(0)])], LABELS, RUNS[1])
    for output, run_id in ((a, RUNS[0]), (b, RUNS[0]), (b, RUNS[1])):
        options = {"score_threshold": 0.0}
        computation = {"text": f"fp32 on {Path(output).name}"}
        write_record(output, run_id, {"options": options, "computation": computation})
    write_document(b, RUNS[1], "report.json", {"computations": {"bf16 on c": 3, "bf16 on d": 1}})
    compact(b)
    result = compare(Comparison(a, b))
    assert result["a"]["computations"] == ["fp32 on a"]
    assert result["b"]["computations"] == ["bf16 on c", "bf16 on d", "fp32 on b"]
    assert "  computed in  bf16 on c\n" in as_text(result)


def test_an_image_with_too_many_boxes_upon_one_another_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_pairs, "MOST_MEETINGS", 1000)
    crowd = [box_at(0)] * 60
    result = write_and_compare(
        tmp_path,
        [Labelled("x/crowd.jpg", crowd), Labelled("x/other.jpg", [box_at(0)])],
        [Labelled("x/crowd.jpg", crowd), Labelled("x/other.jpg", [box_at(0), box_at(70)])],
    )
    counts = {name: value for name, value in result["images"].items() if value}
    assert counts == {
        "a": 2,
        "b": 2,
        "compared": 1,
        "crowded": 1,
        "examples": {"only_a": [], "only_b": [], "crowded": ["x/crowd.jpg"]},
    }
    assert (result["boxes"]["a"], result["boxes"]["b"], result["boxes"]["new"]) == (1, 2, 1)
    line = "1            have too many boxes upon one another, and are not compared (x/crowd.jpg)"
    assert line in as_text(result)


def test_other_options_that_choose_boxes_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Boxes that --nms and --classes of one side dropped looked like lost ones."""
    image = Labelled("x.jpg", [box_at(0)])
    a, b = (write_run(tmp_path / name, [image], LABELS) for name in "ab")
    options = {"score_threshold": 0.0, "nms": 0.5, "classes": "cat,dog"}
    (run,) = committed_runs(b)
    write_record(b, run["run_id"], {"options": options})
    line = (
        "The options that choose boxes differ: no options in a, --nms 0.5 --classes cat,dog in b. "
        "Boxes that one side leaves out, or names otherwise, count as changes."
    )
    assert f"{line}\n" in as_text(compare(Comparison(a, b)))
    assert "options that choose" not in as_text(compare(Comparison(a, a)))
    page = tmp_path / "page.html"
    assert main(["compare", a, b, "--html", str(page)]) == 0
    assert line in page.read_text()


def test_boxes_without_finite_numbers_are_counted_and_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables that somebody edited have them: they ended as an internal error."""
    nan = float("nan")
    bad = [Box(1, nan, 0, 0, 9, 9), Box(1, 0.9, 0, nan, 9, 9), Box(1, 0.9, 9, 0, 0, 9)]
    a, b = (
        write_run(tmp_path / name, [Labelled("x.jpg", boxes)], LABELS)
        for name, boxes in (("a", [box_at(0), *bad]), ("b", [box_at(0)]))
    )
    result = compare(Comparison(a, b))
    assert (result["boxes"]["a"], result["boxes"]["b"], result["boxes"]["gone"]) == (1, 1, 0)
    assert "  not usable   3 boxes, without finite scores and corners" in as_text(result)
    page = tmp_path / "page.html"
    assert main(["compare", a, b, "--html", str(page)]) == 0
    assert "Boxes without finite scores and corners are not compared: 3 in a" in page.read_text()
