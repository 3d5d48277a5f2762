"""The private parts of Ray that we use still have the names and arguments that we rely on."""

import inspect

import pytest

from jobs.cluster.ray_internals import HELPERS, private_ray, problem_of_selector, read_autoscaler


@pytest.mark.parametrize("rule", ["a", "!a", "in(a, b)", "!in(a, b)"])
def test_rules_that_ray_documents_are_accepted(rule: str) -> None:
    assert problem_of_selector({"zone": rule}) is None
    assert problem_of_selector({"zone": f"{rule})"})


def test_ray_has_the_helpers_again_after_the_start_of_a_private_ray() -> None:
    from ray._private.node import Node

    methods = {name: getattr(Node, name) for name in HELPERS}
    with pytest.raises(ConnectionError), private_ray():
        assert all(getattr(Node, name) is not methods[name] for name in HELPERS)
        raise ConnectionError
    assert {name: getattr(Node, name) for name in HELPERS} == methods


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
