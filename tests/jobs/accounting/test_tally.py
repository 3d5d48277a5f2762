"""report.json is computed from the sums of a run."""

import time

import pytest

from jobs.accounting.node_hours import Rates
from jobs.accounting.startup import Startup
from jobs.accounting.tally import Tally, report, sorted_counts
from jobs.label.options import LabelOptions
from jobs.report.report import as_text
from pipeline.schema import Receipt
from pipeline.storage import retries

WORKERS = {"read": 8, "prepare": 1, "detect": 1, "stage": 8}


def test_report_turns_hours_into_usd_per_thousand_images() -> None:
    tally, counts = Tally(), {"ok": 35, "undecodable": 15}
    tally.add(Receipt("a", ("s",), images=40, detections=90, failed={"undecodable": 10}))
    summary = report(tally, counts, 110, WORKERS, {"cpu": 0.5}, 0.5, Rates(usd_per_hour=7.2))
    assert summary["usd"] == pytest.approx(3.6)
    assert summary["usd"]
    assert summary["usd_per_1000_images"] == pytest.approx(summary["usd"] * 1000 / 40)
    text = as_text({"run_id": "r", **summary})
    assert "USD per 1,000 images at 7.2 USD an hour (--usd-per-hour)" in text
    assert "images         50 (35 labelled)" in text
    assert "  before       10 by a run that was killed" in text
    free = as_text({"run_id": "r", **report(tally, counts, 110, WORKERS, {}, 0.5, Rates())})
    assert "not known: give label --instance-type or --usd-per-hour" in free


def test_a_price_of_0_is_known() -> None:
    LabelOptions("a", "b", usd_per_hour=0.0).check()
    tally = Tally()
    tally.add(Receipt("a", ("s",), images=40, detections=90))
    summary = report(tally, {"ok": 40}, 90, WORKERS, {}, 0.5, Rates(usd_per_hour=0.0))
    assert (summary["usd"], summary["usd_per_hour"], summary["usd_per_1000_images"]) == (0, 0, 0)
    assert "0.0000 USD per 1,000 images" in as_text({"run_id": "r", **summary})


def test_a_report_has_its_stages_and_failures_in_one_order() -> None:
    tally = Tally()
    tally.seconds["publish"] += 1.0  # as in a run whose images were staged before
    tally.add(Receipt("a", ("s",), images=4, detections=0, finished_at=time.time()))
    counts = {"undecodable": 1, "empty_file": 2, "ok": 1}
    workers = dict(reversed(WORKERS.items()))
    summary = report(tally, counts, 0, workers, {}, 0.5, Rates())
    assert list(summary["failed"]) == ["empty_file", "undecodable"]
    assert list(sorted_counts(counts)) == ["ok", "empty_file", "undecodable"]
    assert list(summary["seconds_by_stage"]) == ["read", "prepare", "detect", "stage", "publish"]
    assert list(summary["stage_workers"]) == ["read", "prepare", "detect", "stage"]


def test_a_run_counts_its_own_repeated_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """One command may complete two runs: that of a killed command, and a new one."""

    def count_repeated_requests(startup: Startup) -> int:
        monkeypatch.setattr(retries, "repeated", retries.repeated + 3)
        tally = Tally(startup=startup)
        tally.add(Receipt("a", ("s",), images=4, detections=0, retries=2))
        return report(tally, {"ok": 4}, 0, WORKERS, {}, 0.5, Rates())["storage_retries"]

    assert [count_repeated_requests(Startup()), count_repeated_requests(Startup())] == [5, 5]
