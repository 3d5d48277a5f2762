"""Options that are refused, and what a report makes of prices."""

import time
from typing import Any

import pytest

from jobs.accounting.estimate import accuracy, estimate
from jobs.accounting.node_hours import NodeMeter, Rates
from jobs.accounting.startup import Startup
from jobs.accounting.tally import Tally, report, sorted_counts
from jobs.cli import main
from jobs.label.options import LabelOptions
from jobs.report.report import as_text
from pipeline.schema import Receipt
from pipeline.storage import retries


def test_unknown_machine_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["label", "photos", "labels", "--model", "shapes-tiny"]
    assert main([*command, "--instance-type", "abacus"]) == 2
    assert "the table has g5.xlarge" in capsys.readouterr().err
    assert main([*command, "--instance-type", "g5.xlarge", "--usd-per-hour", "1"]) == 2
    assert "give one" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "head"])
def test_cluster_that_does_not_answer_is_refused_at_once(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", "in", "out", "--model", "shapes-tiny", "--address", address]) == 2
    assert "no Ray cluster answers there" in capsys.readouterr().err


def test_cost_is_node_hours_by_kind_at_the_prices_of_the_market() -> None:
    rates = LabelOptions(
        "a", "b", instance_type="g6.xlarge", cpu_instance_type="m5d.2xlarge", spot=True
    ).rates()
    cost = rates.bill({"gpu": 4.0, "cpu": 1.0}, hours=1.0)
    assert cost is not None
    assert cost["usd_on_demand"] == pytest.approx(4 * 0.8048 + 0.452)
    assert cost["usd"] == cost["usd_spot"] == pytest.approx(4 * 0.4083 + 0.2601)
    assert [node["kind"] for node in cost["nodes"]] == ["gpu", "cpu"]
    assert cost["basis"].startswith("g6.xlarge and m5d.2xlarge spot in us-east-1, read on 2026-")


def test_nodes_without_a_price_of_their_own_are_said() -> None:
    rates = LabelOptions("a", "b", instance_type="g6.xlarge").rates()
    mixed, alone = rates.bill({"gpu": 1.0, "cpu": 1.0}, 1.0), rates.bill({"cpu": 1.0}, 1.0)
    assert mixed is not None
    assert alone is not None
    assert mixed["usd"] == pytest.approx(2 * 0.8048)
    assert "give --cpu-instance-type" in mixed["basis"]
    assert "give" not in alone["basis"]
    given = LabelOptions("a", "b", usd_per_hour=3.0).rates().bill({"gpu": 4.0}, 2.0)
    assert given is not None
    assert given["usd"] == 6.0
    assert LabelOptions("a", "b").rates().bill({"gpu": 1.0}, 1.0) is None


def test_nodes_that_come_and_go_are_counted_while_they_live() -> None:
    head: dict[str, Any] = {"Alive": True, "Resources": {"CPU": 2}}
    worker: dict[str, Any] = {"Alive": True, "Resources": {"CPU": 8, "GPU": 1.0}}
    nodes = [head]
    with NodeMeter(lambda: nodes, time.time() - 3600, sample_seconds=0.01) as meter:
        nodes.append(worker)
        time.sleep(0.5)
        worker["Alive"] = False
        time.sleep(0.5)
        found, hours = meter.read()
    assert found["cpu"] == pytest.approx(hours)
    assert hours == pytest.approx(1 + 1 / 3600, rel=1e-3)
    assert 0.3 < found["gpu"] * 3600 < 0.7


def test_an_estimate_is_made_of_earlier_runs_and_judged_by_the_next() -> None:
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
    assert estimate([{"images": 1}], 500, rates) is None  # as earlier versions wrote it
    found = estimate([{"images": 1}, report], 2000, rates)
    assert found == {
        "images": 200,
        "seconds": 220.0,
        "usd": pytest.approx(2 * 220 / 3600 * 0.452),
        "runs": 1,
    }
    assert accuracy({"wall_seconds": 242.0, "estimate": found}) == "it took 10% more"
    assert accuracy({"wall_seconds": 242.0}) is None


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


@pytest.mark.parametrize("price", ["-1", "nan", "inf"])
def test_what_is_no_price_is_refused(price: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["label", "photos", "labels", "--model", "shapes-tiny", "--usd-per-hour", price]
    assert main(command) == 2
    assert f"--usd-per-hour {price}: give a price of 0 or more" in capsys.readouterr().err


def test_a_price_of_0_is_known() -> None:
    LabelOptions("a", "b", usd_per_hour=0.0).check()
    tally = Tally()
    tally.add(Receipt("a", ("s",), images=40, detections=90))
    summary = report(tally, {"ok": 40}, 90, WORKERS, {}, 0.5, Rates(usd_per_hour=0.0))
    assert (summary["usd"], summary["usd_per_hour"], summary["usd_per_1000_images"]) == (0, 0, 0)
    assert "0.0000 USD per 1,000 images" in as_text({"run_id": "r", **summary})


def test_a_report_has_its_stages_and_failures_in_one_order() -> None:
    tally = Tally()
    tally.seconds["publish"] += 1.0  # as a run that was staged before
    tally.add(Receipt("a", ("s",), images=4, detections=0, finished_at=time.time()))
    counts = {"undecodable": 1, "empty_file": 2, "ok": 1}
    workers = dict(reversed(WORKERS.items()))
    summary = report(tally, counts, 0, workers, {}, 0.5, Rates())
    assert list(summary["failed"]) == ["empty_file", "undecodable"]
    assert list(sorted_counts(counts)) == ["ok", "empty_file", "undecodable"]
    assert list(summary["seconds_by_stage"]) == ["read", "prepare", "detect", "stage", "publish"]
    assert list(summary["stage_workers"]) == ["read", "prepare", "detect", "stage"]


def test_a_run_counts_its_own_repeated_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """One command may carry two: that of a killed command, and a new one."""

    def repeated(startup: Startup) -> int:
        monkeypatch.setattr(retries, "repeated", retries.repeated + 3)
        tally = Tally(startup=startup)
        tally.add(Receipt("a", ("s",), images=4, detections=0, retries=2))
        return report(tally, {"ok": 4}, 0, WORKERS, {}, 0.5, Rates())["storage_retries"]

    assert [repeated(Startup()), repeated(Startup())] == [5, 5]
