"""`detr-batch report`: one run or all, for people and for programs."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.accounting.figures import format_duration, format_figure
from jobs.cli import main
from jobs.output.catalog import committed_runs
from jobs.output.run_documents import write_document
from jobs.report.report import as_text, overview
from jobs.report.reports import past_reports
from jobs.report.text import compare_with_reference
from tests.support.committed import commit_run, make_target
from tests.support.nights import write_nights


def report_document(rate: float, cost: float | None) -> dict[str, Any]:
    """The report of a run of 100 images."""
    return {
        "images": 100,
        "ok": 98,
        "failed": {"undecodable": 2},
        "labelled_before": 0,
        "detections": 250,
        "wall_seconds": 100 / rate,
        "images_per_second": rate,
        "images_per_second_steady": None,
        "seconds_by_stage": {"detect": 5.0},
        "storage_retries": 0,
        "computations": {"bf16 on cpu (AVX512, 2 threads)": 1},
        "device_use": 0.5,
        "usd_per_hour": cost and 1.0,
        "price_basis": cost and "--usd-per-hour",
        "usd": cost and cost / 10,
        "usd_per_1000_images": cost,
    }


def write_run(output: Path, run_id: str, rate: float, cost: float | None, **more: Any) -> None:
    """Commit a run of 100 images without tables."""
    write_document(str(output), run_id, "report.json", {**report_document(rate, cost), **more})
    commit_run(make_target(output, run_id), "in", [], {})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    for number, (rate, cost) in enumerate([(10.0, 0.10), (20.0, None), (30.0, 0.05), (15.1, 0.08)]):
        write_run(tmp_path, f"2026112{number}T020000Z-aaaaaa", rate, cost)
    return tmp_path


def test_all_runs_are_listed_with_trends_and_totals(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(output), "--all", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    runs, totals = document["runs"], document["totals"]
    assert [run["images_per_second_change"] for run in runs] == [
        None, pytest.approx(1.0), pytest.approx(1.0), pytest.approx(15.1 / 20 - 1),
    ]  # fmt: skip
    assert [run["usd_per_1000_images_change"] for run in runs] == [
        None, None, pytest.approx(-0.5), pytest.approx(0.08 / 0.075 - 1),
    ]  # fmt: skip
    assert totals["images"] == 400
    assert totals["failed"] == 8
    assert totals["usd"] == pytest.approx(0.023)
    assert totals["runs_without_price"] == 1
    assert main(["report", str(output), "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[3].split("  ")[0] == "20261122T020000Z-aaaaaa"
    assert "100% faster" in lines[3]
    assert "50% cheaper" in lines[3]
    assert "24% slower" in lines[4]
    assert "7% dearer" in lines[4]
    assert lines[5].startswith("4 runs")
    assert lines[6].startswith("cost of all: 0.0230 USD, of 1 run no price is known")


def test_a_night_of_few_images_has_no_trend(tmp_path: Path) -> None:
    for night in ("1", "2"):
        write_run(tmp_path, night, 10.0, 0.02)
    write_run(tmp_path, "3", 0.5, 0.3, images=5, ok=5)  # mostly the time of the start-up
    write_run(tmp_path, "4", 11.0, 0.02)
    runs = overview(str(tmp_path))["runs"]
    assert [run["images_per_second_change"] for run in runs] == [
        None, pytest.approx(0.0), None, pytest.approx(0.1),
    ]  # fmt: skip


def test_a_run_is_chosen_by_name_and_unknown_names_are_refused(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(output), "--run", "20261120T020000Z-aaaaaa", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images_per_second"] == 10.0
    assert main(["report", str(output), "--run", "../20261120T020000Z-aaaaaa"]) == 2
    assert "its newest are 20261120" in capsys.readouterr().err
    assert main(["report", str(output), "--all", "--html", "x.html"]) == 2
    assert main(["report", str(output / "none"), "--all"]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_text_names_the_limiting_stage_and_older_reports_are_still_read(tmp_path: Path) -> None:
    use = {"stage_use": {"detect": 0.97}, "limiting_stage": "detect", "cpu_use": 0.9, "cpus": 4}
    left_out = {"files with hidden names or in hidden folders": 1}
    counts = {"left_out": left_out, "storage_retries": 1, "computations": {"fp32 on cpu": 1}}
    write_run(tmp_path, "1", 10.0, 0.0235, **use, **counts)
    report = json.loads((tmp_path / "_runs/1/report.json").read_text())
    text = as_text({"run_id": "1", **report})
    assert "detect       5.0 s of workers' time, 97% busy: the limit" in text
    assert "CPU use        90% of 4 CPUs" in text
    assert "left out       files with hidden names or in hidden folders: 1\n" in text
    assert "retries        1 repeated request to stores\n" in text
    assert "computed in    fp32 on cpu: 1 image\n" in text
    assert "50 % below the reference price of 0.047 USD" in text
    old = {name: value for name, value in report.items() if name not in use}
    assert "CPU use" not in as_text({"run_id": "1", **old})


def test_figures_are_formatted_for_people() -> None:
    values = (None, 0.0, 0.0034, 0.0472, 0.812, 8.29, 20.03, 240, 1.2e6)
    assert [format_figure(value) for value in values] == [
        "\N{EN DASH}", "0", "0.0034", "0.047", "0.81", "8.29", "20.0", "240", "1,200,000",
    ]  # fmt: skip
    assert [format_duration(v) for v in (8.44, 73.4, 725, 12_000)] == [
        "8.4 s", "73 s", "12 min 5 s", "3 h 20 min",
    ]  # fmt: skip
    assert compare_with_reference(0.0235).startswith("50 % below")
    assert compare_with_reference(0.0477).startswith("as much as")
    assert compare_with_reference(0.47).startswith("10.0 times")
    assert compare_with_reference(0.0).startswith("100 % below")
    assert compare_with_reference(None) == ""


def test_a_missing_report_is_named_and_estimates_do_without_it(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "_runs/20261123T020000Z-aaaaaa/report.json"
    mark = committed_runs(str(output))[0]["model_fingerprint"]
    assert len(past_reports(str(output), mark, 9)) == 4
    (output / name).unlink()
    assert main(["report", str(output)]) == 1
    assert f"{name} of OUTPUT is damaged" in capsys.readouterr().err
    assert len(past_reports(str(output), mark, 9)) == 3


def test_a_page_over_a_damaged_table_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(write_nights(tmp_path / "labels"))
    run_id = committed_runs(str(output))[-1]["run_id"]
    write_document(str(output), run_id, "report.json", report_document(10.0, None))
    (file,) = output.glob(f"images/run={run_id}/part-*.parquet")
    file.write_bytes(file.read_bytes()[:100])
    assert main(["report", str(output), "--html", str(tmp_path / "page.html")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "internal error" not in said, said


def test_an_estimate_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {"images": 100, "seconds": 36.0, "usd": None, "runs": 1}
    write_run(tmp_path, "1", 10.0, None, estimate=made)
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "36 s, made before it began from the last run: it took 72% less" in said
