"""The private parts of Ray that we use still have the names and arguments that we rely on."""

import inspect
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.ray_internals import (
    COORDINATOR,
    HELPERS,
    LOCATIONS,
    STATISTICS,
    TRACKER,
    NoTracker,
    OwnMachine,
    no_imports_from_this_folder,
    private_ray,
    problem_of_selector,
    ray_data_without_helpers,
    read_autoscaler,
    skip_lines,
)
from jobs.cluster.start import START_TOO_SLOW, start_ray
from pipeline.storage.errors import CommandFailed

ROOT = Path(__file__).parents[3]
# Prints what a flow in a Ray of its own yields, and the named actors that it leaves.
FLOW = """
import ray
from jobs.cluster.ray_internals import ray_data_without_helpers
from jobs.cluster.start import start_ray
start_ray(None)

class Same:
    def __call__(self, batch):
        return batch

with ray_data_without_helpers():
    rows = ray.data.range(3).map_batches(Same, concurrency=1).take_all()
print([row["id"] for row in rows], ray.util.list_named_actors(all_namespaces=True))
"""


@pytest.mark.parametrize("rule", ["a", "!a", "in(a, b)", "!in(a, b)"])
def test_rules_that_ray_documents_are_accepted(rule: str) -> None:
    assert problem_of_selector({"zone": rule}) is None
    assert problem_of_selector({"zone": f"{rule})"})


def test_ray_has_the_helpers_again_after_the_start_of_a_private_ray() -> None:
    from ray._private import utils
    from ray._private.node import Node

    methods = {name: getattr(Node, name) for name in HELPERS}
    error = utils.get_dashboard_dependency_error
    with pytest.raises(ConnectionError), private_ray():
        assert all(getattr(Node, name) is not methods[name] for name in HELPERS)
        assert isinstance(utils.get_dashboard_dependency_error(), ImportError)
        raise ConnectionError
    assert {name: getattr(Node, name) for name in HELPERS} == methods
    assert utils.get_dashboard_dependency_error is error


def test_workers_import_from_no_folder_that_ray_adds() -> None:
    from ray._private import worker
    from ray.job_config import JobConfig

    assert "job_config._py_driver_sys_path.extend" in inspect.getsource(worker.connect)
    serialize = JobConfig._serialize
    assert b"/lake" in JobConfig(_py_driver_sys_path=["/lake"])._serialize()
    with pytest.raises(ConnectionError), no_imports_from_this_folder():
        assert b"/lake" not in JobConfig(_py_driver_sys_path=["/lake"])._serialize()
        raise ConnectionError
    assert JobConfig._serialize is serialize


def test_messages_of_the_autoscaler_have_the_fields_that_are_read() -> None:
    from ray.core.generated import autoscaler_pb2 as messages

    state = messages.AutoscalingState.DESCRIPTOR.fields_by_name
    assert {"autoscaler_state_version", "infeasible_cluster_resource_constraints"} <= set(state)
    request = messages.ResourceRequest.DESCRIPTOR.fields_by_name
    assert "resources_bundle" in request


@pytest.mark.usefixtures("local_ray")
def test_a_cluster_without_an_autoscaler_says_nothing() -> None:
    assert read_autoscaler().version == 0


def test_ray_data_takes_the_arguments_that_the_dataflow_gives() -> None:
    from ray.data import ActorPoolStrategy, Dataset

    pool = inspect.signature(ActorPoolStrategy.__init__).parameters
    assert {"max_concurrent_calls_per_actor", "enable_true_multi_threading"} <= set(pool)
    flow = inspect.signature(Dataset.map_batches).parameters
    assert {"fn_args", "fn_constructor_args", "memory", "concurrency"} <= set(flow)


@pytest.mark.slow
def test_a_flow_of_one_machine_starts_no_actor_of_ray_data() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FLOW], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split("\n")[0] == "[0, 1, 2] []"


def test_all_calls_of_the_coordinator_are_replaced() -> None:
    from ray.data._internal.cluster_autoscaler import base_autoscaling_coordinator as base

    calls = base.AutoscalingCoordinator.__abstractmethods__
    assert calls
    assert calls <= vars(OwnMachine).keys()


def test_the_replaced_parts_of_ray_data_come_back_after_an_error() -> None:
    from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler as autoscaler
    from ray.data._internal.execution.operators import actor_pool_map_operator as pools
    from ray.data._internal.stats import _StatsManager

    tracking = [getattr(pools, name) for name in (TRACKER, LOCATIONS)]
    parts = [vars(_StatsManager)[name] for name in STATISTICS]
    coordinator = getattr(autoscaler, COORDINATOR)
    with pytest.raises(ConnectionError), ray_data_without_helpers():
        assert getattr(autoscaler, COORDINATOR) is OwnMachine
        assert getattr(pools, TRACKER) is NoTracker
        raise ConnectionError
    assert [vars(_StatsManager)[name] for name in STATISTICS] == parts
    assert getattr(autoscaler, COORDINATOR) is coordinator
    assert [getattr(pools, name) for name in (TRACKER, LOCATIONS)] == tracking


def test_the_tracker_has_the_method_that_actors_of_ray_data_call() -> None:
    from ray.data._internal.execution.node_trackers.actor_location import ActorLocationTracker

    methods = ActorLocationTracker.__ray_metadata__.method_meta.methods
    assert {"update_actor_location", "get_actor_locations"} <= methods.keys()
    NoTracker().update_actor_location.remote("actor", "node")


@pytest.mark.parametrize("is_err", [False, True])  # Ray prints errors of its servers on stdout
def test_lines_with_a_text_are_skipped_and_no_others(
    is_err: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray._private.ray_logging import stderr_deduplicator, stdout_deduplicator
    from ray._private.worker import print_to_stdstream

    for deduplicator in (stdout_deduplicator, stderr_deduplicator):
        monkeypatch.setattr(deduplicator, "skip_re", None)
    skip_lines("killed by `ray.kill`")
    name = uuid.uuid4().hex  # Ray keeps the lines of the last seconds
    lines = [f"Task {name} failed: killed by `ray.kill`.", f"Task {name} failed: its node died."]
    batch: Any = {"ip": "127.0.0.1", "pid": "raylet", "lines": lines, "is_err": is_err}
    print_to_stdstream(batch, ignore_prefix=True)
    printed = capsys.readouterr()
    said, other = (printed.err, printed.out) if is_err else (printed.out, printed.err)
    assert lines[1] in said and lines[0] not in said and not other


def test_a_ray_that_starts_too_slowly_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray waits for half a minute, which no setting changes."""
    from ray._private import node

    assert START_TOO_SLOW in re.sub(r'"\s+"', "", inspect.getsource(node))

    def be_late(**_: object) -> None:
        raise Exception(f"The current node {START_TOO_SLOW}.")  # the type that Ray raises

    monkeypatch.setattr("ray.init", be_late)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(CommandFailed, match=r"very busy .* run the same command again"):
        start_ray(None)
