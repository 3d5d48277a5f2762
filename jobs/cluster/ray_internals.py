"""Private parts of Ray (2.59 to 2.63). Beside this file, only `bench` uses private parts of Ray.

Check this file when Ray is upgraded: tests/jobs/cluster/test_ray_internals.py fails first.
"""

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.job_config import JobConfig

# The variables in which Ray looks for its token. Then it reads, or writes, ~/.ray/auth_token.
TOKEN, TOKEN_PATH, MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"

# Methods of Ray's `Node` that start processes of which a command has no use: the dashboard, whose
# start `ray.init` waits for although `include_dashboard` is false, the autoscaler, which has no
# nodes to start, and the reader of log files for `log_to_driver`. They take 1.4 s of a CPU, and
# `ray.init` took 2.6 s instead of 4.2 s (two cores, 2026-11-27).
HELPERS = ("start_api_server", "start_monitor", "start_log_monitor")

# Calls by which Ray Data sends statistics to an actor. Only Ray's dashboard reads them there.
STATISTICS = (
    "register_dataset_to_stats_actor",
    "update_execution_metrics",
    "update_iteration_metrics",
)
COORDINATOR = "DefaultAutoscalingCoordinator"
# The functions by which Ray Data asks an actor on which nodes its other actors are. The loop that
# starts tasks waits for the answers, and so for the process of this actor.
TRACKER, LOCATIONS = "get_or_create_actor_location_tracker", "get_actor_locations"


@contextmanager
def private_ray() -> Iterator[None]:
    """A Ray that is started within the block listens on loopback alone, and has a token of its own.

    By default Ray listens on all addresses of the machine, and writes its token to a file of the
    home directory that other users can read. The token of this Ray is in the memory of its
    processes only. Tokens that the environment names, and RAY_AUTH_MODE=disabled, are respected.

    It has none of the processes HELPERS, and its agent is the one of a Ray without a dashboard. The
    other one binds a fixed port, so that a second Ray of a machine started 5 s later; and nobody
    can find the port at which it shows metrics.
    """
    from ray._private import ray_constants, utils
    from ray._private.node import Node
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    if not os.environ.get(MODE):
        os.environ[MODE] = "token"
        Config.initialize("")  # reads the variable again
    own_token = not (os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH))
    may_join = ray_constants.ENABLE_RAY_CLUSTER
    # Ray then takes loopback as the address of this node, as it does on Windows and macOS.
    ray_constants.ENABLE_RAY_CLUSTER = False
    if own_token:
        os.environ[TOKEN] = secrets.token_hex(32)
        AuthenticationTokenLoader.instance().reset_cache()
    dashboard_error = utils.get_dashboard_dependency_error
    utils.get_dashboard_dependency_error = lambda: ImportError("no dashboard is wanted")
    starts = {name: getattr(Node, name) for name in HELPERS}
    for name in HELPERS:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        utils.get_dashboard_dependency_error = dashboard_error
        for name, start in starts.items():
            setattr(Node, name, start)
        ray_constants.ENABLE_RAY_CLUSTER = may_join
        if own_token:
            del os.environ[TOKEN]  # the processes of Ray have it, and this one remembers it


@contextmanager
def no_imports_from_this_folder() -> Iterator[None]:
    """Workers of a job that begins within the block do not import from the current folder.

    By default `ray.init` puts the current folder, which may be one of images that anybody wrote, in
    front of all others where workers look for modules, and so the folder of the script.
    """
    serialize = JobConfig._serialize

    def serialize_without_folders(config: JobConfig) -> bytes:
        config._py_driver_sys_path.clear()
        return serialize(config)

    JobConfig._serialize = serialize_without_folders
    try:
        yield
    finally:
        JobConfig._serialize = serialize


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


class NoTracker:
    """What actors of Ray Data tell where they are, on a machine that is the only node."""

    class update_actor_location:
        """Called as a method of an actor is."""

        @staticmethod
        def remote(*_: object) -> None:
            """Ignore it."""


@contextmanager
def ray_data_without_helpers() -> Iterator[None]:
    """Flows of this block have no actors for statistics, for sharing a cluster, and for locations.

    Each of these actors takes 0.5 to 0.9 s of a CPU, because its worker starts and imports Ray
    Data.
    """
    from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler as autoscaler
    from ray.data._internal.execution.operators import actor_pool_map_operator as pools
    from ray.data._internal.stats import _StatsManager

    calls = {name: vars(_StatsManager)[name] for name in STATISTICS}
    coordinator = getattr(autoscaler, COORDINATOR)
    tracking = {name: getattr(pools, name) for name in (TRACKER, LOCATIONS)}
    for name in STATISTICS:
        setattr(_StatsManager, name, staticmethod(lambda *_, **__: None))
    setattr(autoscaler, COORDINATOR, OwnMachine)
    setattr(pools, TRACKER, NoTracker)
    setattr(pools, LOCATIONS, lambda _: {})
    try:
        yield
    finally:
        for name, call in calls.items():
            setattr(_StatsManager, name, call)
        setattr(autoscaler, COORDINATOR, coordinator)
        for name, function in tracking.items():
            setattr(pools, name, function)


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


def serve_address() -> tuple[str, int] | None:
    """Where the proxies of Ray Serve listen; None if it does not run on the cluster."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else (client.http_config.host, client.http_config.port)


def skip_lines(text: str) -> None:
    """Let this process print no line of Ray's other processes that has this text.

    Ray has RAY_DEDUP_LOGS_SKIP_REGEX for that, which it reads while it is imported. What a user has
    set there stays. Lines of its errors come on stdout, others on stderr.
    """
    from ray._private.ray_logging import stderr_deduplicator, stdout_deduplicator

    for lines in (stdout_deduplicator, stderr_deduplicator):
        lines.skip_re = lines.skip_re or re.compile(re.escape(text))
