"""Node-hours and their cost."""

import time
from typing import Any

import pytest

from jobs.accounting.node_hours import NodeMeter
from jobs.label.options import LabelOptions


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


def test_nodes_without_a_price_of_their_own_are_reported() -> None:
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


def test_a_cluster_that_does_not_answer_is_counted_by_its_last_sample() -> None:
    def nodes() -> list[dict[str, Any]]:
        assert len(samples) < 2, "the cluster is gone"
        samples.append(1)
        return [{"Alive": True, "Resources": {"CPU": 2}}]

    samples: list[int] = []
    with NodeMeter(nodes, time.time() - 3600, sample_seconds=60) as meter:
        meter.read()
        time.sleep(0.2)
        found, hours = meter.so_far()
    assert hours == pytest.approx(1 + 0.2 / 3600, rel=1e-4)
    assert found["cpu"] == pytest.approx(hours, rel=1e-6)
