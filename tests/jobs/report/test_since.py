"""What changed since the last run: rates, failures and classes."""

from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.output.catalog import committed_runs
from jobs.output.run_documents import write_document
from jobs.report.page import environment
from jobs.report.since import PER_IMAGES, Since, compare_with_last_run
from tests.jobs.report.test_report import report_document
from tests.support.labelled import Box, Labelled, write_run

LABELS = ("", "circle", "tea cup", "star")
FIRST, SECOND = "20260101T000000Z-aaaaaa", "20260102T000000Z-aaaaaa"


def write_night(
    output: Path,
    run_id: str,
    boxes: list[int],
    report: dict[str, Any],
    source: str = "in",
    threshold: float = 0.3,
    **more: Any,
) -> None:
    """Write a run of two images; the second has a box of each class in `boxes`."""
    found = [Box(label, 0.9, 0, 0, 9, 9) for label in boxes]
    faint = Box(1, 0.4, 0, 0, 9, 9)  # is not counted
    images = [
        Labelled(f"{run_id}/1.jpg", [faint]),
        Labelled(f"{run_id}/2.jpg", found),
        Labelled(f"{run_id}/3.jpg", status="truncated"),
    ]
    write_run(output, images, LABELS, run_id, threshold, source, **more)
    write_document(str(output), run_id, "report.json", report)


REPORT = report_document(15.0, None) | {"failed": {"truncated": 4}, "ok": 96}


def since(output: Path) -> Since | None:
    return compare_with_last_run(str(output), committed_runs(str(output))[-1])


def changes(figures: list[Any]) -> dict[str, tuple[str, str, str]]:
    return {one.name: (one.before, one.now, one.change) for one in figures}


def test_rates_failures_and_classes_are_those_of_both_runs(tmp_path: Path) -> None:
    write_night(tmp_path, FIRST, [0, 1, 1, 2], report_document(10.0, None))
    assert since(tmp_path) is None
    write_night(tmp_path, SECOND, [1, 3], report_document(15.0, None))
    found = since(tmp_path)
    assert found is not None and (found.run_id, found.input, found.why) == (FIRST, "", "")
    assert changes(found.figures(REPORT)) == {
        "Images": ("100", "100", ""),
        "Images per second": ("10.0", "15.0", "50 % faster"),
        "Failed": ("2.00 %", "4.00 %", "2.00 points more"),
        "undecodable": ("2.00 %", "0 %", "2.00 points fewer"),
        "truncated": ("0 %", "4.00 %", "4.00 points more"),
    }
    assert changes(found.classes) == {
        "circle": ("100", "50.0", "50 % fewer"),
        "tea cup": ("50.0", "0", "gone"),
        "star": ("0", "50.0", "new"),
    }


def test_the_last_run_is_over_the_same_input_if_there_is_one(tmp_path: Path) -> None:
    write_night(tmp_path, FIRST, [1], report_document(10.0, None))
    write_night(tmp_path, "20260101T120000Z-aaaaaa", [1], report_document(9.0, None), "other")
    found = since(tmp_path)
    assert found is not None and (found.run_id, found.input) == (FIRST, "in")
    write_night(tmp_path, SECOND, [1], report_document(10.0, None))
    found = since(tmp_path)
    assert found is not None and (found.run_id, found.input) == (FIRST, "")


@pytest.mark.parametrize("kind", ["report", "table"])
def test_damage_to_the_last_run_is_said_and_stops_nothing(tmp_path: Path, kind: str) -> None:
    write_night(tmp_path, FIRST, [1], report_document(10.0, None))
    write_night(tmp_path, SECOND, [1], report_document(10.0, None))
    pattern = "_runs/*/report.json" if kind == "report" else "detections/*/*.parquet"
    (file,) = [file for file in tmp_path.glob(pattern) if FIRST in str(file)]
    file.write_bytes(file.read_bytes()[:20])
    found = since(tmp_path)
    assert found is not None and not found.classes
    assert file.name in found.why


def test_classes_of_merged_runs_are_not_compared(tmp_path: Path) -> None:
    write_night(tmp_path, FIRST, [1], report_document(10.0, None))
    write_night(tmp_path, SECOND, [1], report_document(10.0, None))
    run = committed_runs(str(tmp_path))[-1]
    assert main(["compact", str(tmp_path)]) == 0
    found = compare_with_last_run(str(tmp_path), run)
    assert found is not None and found.figures(REPORT) and not found.classes
    assert "merged" in found.why


def test_a_run_that_this_one_replaced_is_compared_by_its_report(tmp_path: Path) -> None:
    write_night(tmp_path, FIRST, [1], report_document(10.0, None), threshold=0.5)
    write_night(tmp_path, SECOND, [2], REPORT, threshold=0.7, replaces=[FIRST])
    found = since(tmp_path)
    assert found is not None and (found.run_id, found.input) == (FIRST, "")
    assert changes(found.figures(REPORT))["Images per second"] == ("10.0", "15.0", "50 % faster")
    assert found.rules == ["--score-threshold was 0.5 and is 0.7"]
    assert not found.classes and "replaced its tables" in found.why


def test_of_a_replaced_run_whose_report_is_gone_it_is_said_why_nothing_is_compared(
    tmp_path: Path,
) -> None:
    write_night(tmp_path, FIRST, [1], report_document(10.0, None))
    write_night(tmp_path, SECOND, [1], report_document(12.0, None), replaces=[FIRST])
    (tmp_path / "_runs" / FIRST / "report.json").unlink()
    found = since(tmp_path)
    assert found is not None and not found.figures(REPORT) and not found.classes
    assert "report.json" in found.why


def test_runs_that_compact_made_are_not_the_last_run(tmp_path: Path) -> None:
    write_night(tmp_path, FIRST, [1], report_document(10.0, None))
    write_night(tmp_path, SECOND, [1], report_document(12.0, None))
    assert main(["compact", str(tmp_path)]) == 0
    (merged,) = committed_runs(str(tmp_path))
    last = "99990101T000000Z-aaaaaa"  # later than the merged run
    write_night(tmp_path, last, [1], report_document(15.0, None), replaces=[merged["run_id"]])
    found = since(tmp_path)
    assert found is not None and found.run_id == SECOND


def test_rules_that_differ_are_said(tmp_path: Path) -> None:
    write_night(tmp_path, FIRST, [1], REPORT, threshold=0.5, nms=0.5, classes="circle,star")
    write_night(tmp_path, SECOND, [1], REPORT, threshold=0.7, min_size=4.0, classes="circle,star")
    found = since(tmp_path)
    assert found is not None and found.rules == [
        "--score-threshold was 0.5 and is 0.7",
        "--nms was 0.5 and is not given",
        "--min-size was not given and is 4",
    ]
    template = environment("jobs.report").get_template("since.html.j2")
    page = template.render(since=found, report=REPORT, per_images=PER_IMAGES)
    assert "The two runs were given other options" in page
    assert all(rule in page for rule in found.rules)


def test_rules_that_are_the_same_are_not_said(tmp_path: Path) -> None:
    write_night(tmp_path, FIRST, [1], REPORT, nms=0.5, min_size=0.0)
    write_night(tmp_path, SECOND, [1], REPORT, nms=0.5)  # an earlier version had no --min-size
    found = since(tmp_path)
    assert found is not None and found.rules == []
