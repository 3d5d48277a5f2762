"""A budget ends where its first limit is reached, with time to publish."""

import math
import time
from typing import Any

import pytest

from jobs.accounting.budget import PUBLISH_SECONDS, Budget
from jobs.accounting.node_hours import NodeMeter, Rates
from jobs.accounting.prices import machine
from pipeline.storage.clock import steady_time

NAMES = {"max_usd": "--max-usd 1", "max_hours": "--max-hours 1", "until": "--until 06:00"}


def meter(gpus: int, cpus: int, hours: float) -> NodeMeter:
    """A meter of so many nodes that have run for `hours`."""
    nodes: list[dict[str, Any]] = [{"Alive": True, "Resources": {"GPU": 1.0}}] * gpus
    nodes += [{"Alive": True, "Resources": {"CPU": 8.0}}] * cpus
    return NodeMeter(lambda: nodes, steady_time() - 3600 * hours)


def test_without_a_limit_there_is_always_time() -> None:
    budget = Budget(steady_time() - 1e6, Rates())
    assert not budget.is_limited and budget.seconds_left(10**9, 1.0) == math.inf


def test_the_first_limit_counts() -> None:
    began = steady_time() - 1800
    budget = Budget(began, Rates(), max_hours=1.0, until=time.time() + 3600, names=NAMES)
    assert budget.seconds_left() == pytest.approx(1800 - PUBLISH_SECONDS, abs=1)
    assert budget.reason() == "--max-hours 1"
    budget.until = time.time() + 900
    assert budget.seconds_left(images=1000, publish_seconds=0.1) == pytest.approx(
        900 - PUBLISH_SECONDS - 100, abs=1
    )
    assert budget.reason() == "--until 06:00"


def test_money_is_spent_by_all_nodes_from_the_start_on() -> None:
    rates = Rates(gpu=machine("g6.xlarge"), cpu=machine("m5d.2xlarge"), spot=True)
    hourly = 2 * 0.4083 + 0.2601
    budget = Budget(steady_time() - 1800, rates, max_usd=hourly, names=NAMES)
    with meter(gpus=2, cpus=1, hours=0.5) as nodes:
        budget.begin_run(nodes)
        assert budget.seconds_left() == pytest.approx(1800 - PUBLISH_SECONDS, abs=2)
        budget.end_run()
    assert budget.spent_usd == pytest.approx(hourly / 2, rel=1e-3)
    with meter(gpus=1, cpus=0, hours=0.0) as nodes:  # a second run of the same command
        budget.begin_run(nodes)
        left = 3600 * hourly / 2 / 0.4083
        assert budget.seconds_left() == pytest.approx(left - PUBLISH_SECONDS, rel=1e-2)


def test_before_ray_is_started_one_node_at_least_costs_money() -> None:
    budget = Budget(steady_time() - 7200, Rates(usd_per_hour=3.0), max_usd=5.0, names=NAMES)
    assert budget.seconds_left() < 0
    free = Budget(steady_time() - 7200, Rates(usd_per_hour=0.0), max_usd=5.0, names=NAMES)
    assert free.seconds_left() == math.inf
