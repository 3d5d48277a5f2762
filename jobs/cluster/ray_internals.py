"""Private parts of Ray (2.59 to 2.63). Beside this file, only `bench` uses private parts of Ray.

Check this file when Ray is upgraded: tests/jobs/cluster/test_ray_internals.py fails first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import ray


@dataclass(frozen=True)
class AutoscalerView:
    """The last state that the autoscaler of a cluster reported."""

    version: int  # grows with each update; 0 if there is no autoscaler
    # One list for each request that it cannot meet: the resources of the requested nodes.
    infeasible: list[list[dict[str, float]]]


def read_autoscaler() -> AutoscalerView:
    """Read the autoscaler state of the cluster that this process is connected to."""
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    gcs = ray.get_runtime_context().gcs_address
    reply = GetClusterStatusReply.FromString(ray._raylet.GcsClient(gcs).get_cluster_status())
    state = reply.autoscaling_state
    infeasible = [
        [dict(request.request.resources_bundle) for request in constraint.resource_requests]
        for constraint in state.infeasible_cluster_resource_constraints
    ]
    return AutoscalerView(state.autoscaler_state_version, infeasible)


def problem_of_selector(labels: Mapping[str, str]) -> str | None:
    """Why Ray refuses to choose nodes by these labels. None if it accepts them."""
    from ray._private.label_utils import validate_label_selector

    problem: str | None = validate_label_selector(dict(labels))
    return problem
