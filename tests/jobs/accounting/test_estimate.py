"""Estimates of time and cost are computed from the reports of earlier runs."""

import pytest

from jobs.accounting.estimate import accuracy, estimate
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
