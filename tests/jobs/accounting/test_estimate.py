"""Estimates of time and cost are computed from the reports of earlier runs."""

from typing import Any

import pytest

from jobs.accounting.estimate import accuracy, as_text, estimate
from jobs.label.options import LabelOptions


def test_an_estimate_comes_from_earlier_runs_and_is_compared_with_the_next() -> None:
    rates = LabelOptions("a", "b", instance_type="m5d.2xlarge").rates()
    report = {
        "images": 100,
        "labelled_before": 0,
        "encoded_bytes": 1000,
        "startup_seconds": 20.0,
        "wall_seconds": 120.0,
        "node_hours": {"gpu": 0.0, "cpu": 2 * 120 / 3600},
    }
    assert estimate([], 500, rates) is None
    assert estimate([{"images": 1}], 500, rates) is None  # a report of an earlier version
    found = estimate([{"images": 1}, report], 2000, rates)
    assert found == {
        "images": 200,
        "seconds": 220.0,
        "usd": pytest.approx(2 * 220 / 3600 * 0.452),
        "runs": 1,
    }
    assert accuracy({"wall_seconds": 242.0, "estimate": found}) == "it took 10% more"
    assert accuracy({"wall_seconds": 242.0}) is None


def report_of(startup: float, seconds: float, usd_hours: float = 0.01) -> dict[str, Any]:
    """The report of a run over 100 images of 10 bytes each, which took `seconds` after start-up."""
    return {
        "images": 100,
        "labelled_before": 0,
        "encoded_bytes": 1000,
        "startup_seconds": startup,
        "wall_seconds": startup + seconds,
        "node_hours": {"gpu": 0.0, "cpu": usd_hours},
    }


def test_three_new_images_take_the_start_up_and_are_three() -> None:
    found = estimate(
        [report_of(20.0, 100.0)], 24, LabelOptions("a", "b").rates(), loose=3, loose_bytes=24
    )
    assert found is not None and found["seconds"] == pytest.approx(22.4)
    assert as_text(found).startswith("about 3 images, 22 s, no price was given (by the last run)")
    some = estimate([report_of(20.0, 100.0)], 1, LabelOptions("a", "b", usd_per_hour=0.01).rates())
    assert some is not None and some["images"] == 1
    assert "about 1 image, 20 s, 0.000056 USD" in as_text(some)


def test_loose_files_are_counted_and_archives_are_estimated() -> None:
    found = estimate([report_of(20.0, 100.0)], 60, LabelOptions("a", "b").rates(), 3, 20)
    assert found is not None and found["images"] == 3 + 4


def test_several_runs_give_a_range() -> None:
    reports = [report_of(10.0, 100.0), report_of(20.0, 200.0), report_of(15.0, 120.0)]
    found = estimate(reports, 1000, LabelOptions("a", "b", usd_per_hour=36.0).rates())
    assert found is not None and found["seconds"] == 135.0
    assert (found["least_seconds"], found["most_seconds"]) == (110.0, 220.0)
    assert as_text(found).splitlines()[1].strip() == (
        "1 min 50 s to 3 min 40 s, 1.10 to 2.20 USD (by the fastest and the slowest of them)"
    )


def test_images_that_a_budget_kept_count_as_labelled() -> None:
    part = {**report_of(10.0, 100.0), "images": 60, "kept": 40}
    found = estimate([part], 1000, LabelOptions("a", "b").rates())
    assert found is not None and found["images"] == 100
