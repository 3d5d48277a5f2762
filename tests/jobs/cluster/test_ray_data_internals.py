"""The private parts of Ray Data that we replace are still those that its flows use."""

import subprocess
import sys
from pathlib import Path

import pytest
from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler as autoscaler
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import (
    AutoscalingCoordinator,
)
from ray.data._internal.stats import _StatsManager

from jobs.cluster.ray_data_internals import (
    COORDINATOR,
    STATISTICS,
    OwnMachine,
    ray_data_without_helpers,
)

ROOT = Path(__file__).parents[3]
# Prints the named actors of a flow in a Ray of its own, and what the flow yields.
SHOW = """
import ray
from jobs.cluster.ray_data_internals import ray_data_without_helpers
from jobs.cluster.start import start_ray
start_ray(None)
with ray_data_without_helpers():
    rows = ray.data.range(3).map_batches(lambda batch: batch).take_all()
print([row["id"] for row in rows], ray.util.list_named_actors(all_namespaces=True))
"""


def test_a_flow_of_one_machine_starts_no_actor_of_ray_data() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split("\n")[0] == "[0, 1, 2] []"


def test_all_calls_of_the_coordinator_are_replaced() -> None:
    assert issubclass(getattr(autoscaler, COORDINATOR), AutoscalingCoordinator)
    assert AutoscalingCoordinator.__abstractmethods__ <= vars(OwnMachine).keys()


def test_the_replaced_parts_come_back_after_an_error() -> None:
    parts = [vars(_StatsManager)[name] for name in STATISTICS]
    coordinator = getattr(autoscaler, COORDINATOR)
    with pytest.raises(ConnectionError), ray_data_without_helpers():
        assert getattr(autoscaler, COORDINATOR) is OwnMachine
        raise ConnectionError
    assert [vars(_StatsManager)[name] for name in STATISTICS] == parts
    assert getattr(autoscaler, COORDINATOR) is coordinator
