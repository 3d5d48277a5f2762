"""Private parts of Ray Data (2.60) that slow the start of a flow on one machine.

Check this file when Ray is upgraded: tests/jobs/cluster/test_ray_data_internals.py fails first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler as autoscaler
from ray.data._internal.stats import _StatsManager

# Calls that send statistics to an actor from which only Ray's dashboard reads them.
STATISTICS = (
    "register_dataset_to_stats_actor",
    "update_execution_metrics",
    "update_iteration_metrics",
)
COORDINATOR = "DefaultAutoscalingCoordinator"


class OwnMachine:
    """What Ray Data asks for the resources of a flow, on a machine that has no other flow.

    Ray Data asks an actor, and starts no task before the actor answers.
    """

    def __init__(self, **_: Any) -> None:
        self._resources = {
            node["NodeID"]: dict(node["Resources"]) for node in ray.nodes() if node["Alive"]
        }

    def request_resources(self, **_: Any) -> None:
        """Ignore a request: there is no autoscaler that could meet it."""

    def cancel_request(self) -> None:
        """There is nothing to cancel."""

    def get_reserved_resources(self) -> dict[str, dict[str, float]]:
        return self._resources


@contextmanager
def ray_data_without_helpers() -> Iterator[None]:
    """Flows of this block have no actors for statistics and for sharing a cluster with others.

    Each of these two actors takes 0.9 s of a CPU, because its worker starts and imports Ray Data.
    """
    calls = {name: vars(_StatsManager)[name] for name in STATISTICS}
    coordinator = getattr(autoscaler, COORDINATOR)
    for name in STATISTICS:
        setattr(_StatsManager, name, staticmethod(lambda *_, **__: None))
    setattr(autoscaler, COORDINATOR, OwnMachine)
    try:
        yield
    finally:
        for name, call in calls.items():
            setattr(_StatsManager, name, call)
        setattr(autoscaler, COORDINATOR, coordinator)
