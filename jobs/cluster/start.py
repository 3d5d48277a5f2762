"""The Ray that a run is on: started or joined, and looked at before anything is computed."""

import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from urllib.parse import urlsplit

import psutil
import ray
import torch
from ray.autoscaler.v2.sdk import request_cluster_resources
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cluster.placement import Node, Placement, placement_on
from jobs.cluster.probe import PACKAGES, probe
from jobs.cluster.ray_internals import AutoscalerView, read_autoscaler
from jobs.cluster.ray_lines import hush_actor_warning, hush_logs
from jobs.cluster.request import ClusterRequest
from pipeline.dataflow import ACTOR_CPUS, Layout
from pipeline.schema import Member
from pipeline.storage.files import InputError
from pipeline.storage.urls import mask

CONNECT_SECONDS = 10.0  # for a cluster's answer
JOIN_SECONDS = 30.0  # for nodes that are about to join, and for an autoscaler's word
LOOK_SECONDS = 1.0
PROBE_SECONDS = 120.0  # for all nodes: a worker starts, and fetches the job's code


def check_machines(request: ClusterRequest) -> None:
    """InputError for a request that nothing here can meet, before Ray is started or joined."""
    if request.address and request.address != "auto":
        check_reachable(request.address)
    if request.address:
        return
    gpus = torch.cuda.device_count()
    if request.device == "cuda" and not gpus:
        raise InputError(
            "--device cuda: this machine has no GPU that torch can use; "
            "pass --device cpu, or --address of a cluster that has one"
        )
    if request.device != "cpu" and 0 < gpus < request.fewest_gpus:
        raise InputError(f"--num-gpus {request.fewest_gpus}: this machine has {gpus}")


def check_reachable(address: str) -> None:
    """InputError unless something listens at a Ray address: Ray itself would try for ten minutes.

    `address` is `host:port` or `ray://host:port`.
    """
    place = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if place.hostname is None or place.port is None:
            raise ValueError("give host:port, ray://host:port or auto")
        socket.create_connection((place.hostname, place.port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers there ({error})") from error


def start_ray(address: str | None) -> None:
    """Connect to the cluster at an address, or start a local one that ends with this process."""
    hush_logs()
    if ray.is_initialized():
        return
    address = address or "local"  # not one that was left running
    try:
        ray.init(
            address=address, log_to_driver=False, include_dashboard=False, configure_logging=False
        )
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--address {address}: no Ray cluster answers there, or it takes another token "
            f"(RAY_AUTH_TOKEN, RAY_AUTH_MODE): {reason}"
        ) from error
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise InputError(
            f"--address {address}: {' '.join(str(error).split())}. Use the image of "
            "infra/Dockerfile on all nodes, or install the cluster's versions here"
        ) from error
    hush_actor_warning()


def alive_nodes() -> dict[str, Node]:
    """Nodes of the cluster by their ids."""
    return {
        node["NodeID"]: Node(node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    }


def this_machine() -> Node:
    """What a Ray of its own would count of it, but for what Ray keeps for itself."""
    available = psutil.virtual_memory().available
    return Node({"CPU": os.cpu_count() or 1, "memory": available}, {})


def placement_without_starting(request: ClusterRequest) -> Placement:
    """Where a run would go. Joins a cluster where one is named, and starts none."""
    if not request.address:
        return placement_on(request, [this_machine()], cluster=False)
    start_ray(request.address)
    return placement_on(request, list(alive_nodes().values()), cluster=True)


def start_or_join_ray(request: ClusterRequest, lock_url: str, first: Member) -> Placement:
    """Start or join Ray, and make sure that the run can go on it. InputError where it cannot.

    On a cluster its workers are asked too: for what runs there, and whether they see OUTPUT (the
    lock at `lock_url`) and INPUT (its `first` object).
    """
    start_ray(request.address)
    if not request.address:
        nodes = list(alive_nodes().values())
        placement = placement_on(request, nodes, cluster=False)
        if lacks := placement.lacks(nodes):
            raise InputError(f"this machine is too small: {lacks}")
        return placement
    placement = wait_until_it_fits(request)
    check_workers(placement, lock_url, first)
    return placement


def wait_until_it_fits(request: ClusterRequest, seconds: float = JOIN_SECONDS) -> Placement:
    """Where the run goes. InputError within `seconds` where the cluster can never hold it.

    Nodes that are about to join are waited for; an autoscaler is asked whether it could make them.
    """
    placement, lacks = _look_at_cluster(request)
    if lacks is None:
        return placement
    seen = read_autoscaler().version
    gcs = ray.get_runtime_context().gcs_address
    request_cluster_resources(gcs, placement.demand())
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            placement, lacks = _look_at_cluster(request)
            if lacks is None or _can_be_made(read_autoscaler(), seen, placement):
                return placement
    finally:
        request_cluster_resources(gcs, [])  # from now on the actors that wait ask
    has = _nodes_as_text(list(alive_nodes().values()))
    raise InputError(
        f"the cluster cannot hold the run: {lacks}. {has} Give other "
        "--num-gpus, --device, --detect-on or --prepare-on, or a larger cluster"
    )


def _look_at_cluster(request: ClusterRequest) -> tuple[Placement, str | None]:
    """Where the run would go now, and what is lacking."""
    nodes = list(alive_nodes().values())
    placement = placement_on(request, nodes, cluster=True)
    return placement, placement.lacks(nodes)


def _can_be_made(view: AutoscalerView, seen: int, placement: Placement) -> bool:
    """Whether an autoscaler has looked twice since version `seen`, and makes what is asked for."""
    ours = _amounts(one["resources"] for one in placement.demand())
    refused = [_amounts(bundles) for bundles in view.infeasible]
    return view.version > seen + 1 and ours not in refused


def _amounts(bundles: Iterable[Mapping[str, float]]) -> set[tuple[tuple[str, float], ...]]:
    """What is asked for, to be compared: a request of another job is no word about this one."""
    return {tuple(sorted(bundle.items())) for bundle in bundles}


def _nodes_as_text(nodes: Sequence[Node]) -> str:
    """What there is, in a sentence."""
    resources = {name: sum(n.resources.get(name, 0) for n in nodes) for name in ("CPU", "GPU")}
    memory = max((node.resources.get("memory", 0) for node in nodes), default=0) / (1 << 30)
    return (
        f"It has {len(nodes)} nodes with {resources['CPU']:g} CPUs and {resources['GPU']:g} GPUs, "
        f"and {memory:.1f} GiB of memory at most."
    )


def check_workers(placement: Placement, lock_url: str, first: Member) -> None:
    """InputError where a node of the run has other versions, or cannot use OUTPUT or INPUT."""
    versions = {name: version(name) for name in PACKAGES}
    task = ray.remote(num_cpus=0, max_retries=1)(probe)
    there = [
        NodeAffinitySchedulingStrategy(node_id, soft=True)
        for node_id, node in alive_nodes().items()
        if placement.uses(node)
    ]
    asked = [
        task.options(scheduling_strategy=node).remote(versions, lock_url, first) for node in there
    ]
    try:
        answers = ray.get(asked, timeout=PROBE_SECONDS)
    except GetTimeoutError as error:
        raise InputError(f"no worker of Ray started within {PROBE_SECONDS:.0f} s") from error
    except ray.exceptions.RayError as error:
        reason = mask(str(error).strip().splitlines()[-1])
        raise InputError(f"workers of the cluster cannot run detr-batch: {reason}") from error
    if problems := [answer for answer in answers if answer]:
        raise InputError(problems[0])


def stage_workers(layout: Layout) -> dict[str, int]:
    """How many of each stage can work at once, by what the cluster is now."""
    cpus = ray.cluster_resources().get("CPU", 1.0)
    fit = max(1, int(cpus / ACTOR_CPUS))
    return {
        "read": layout.tasks,
        "prepare": min(layout.preparers or fit, fit),
        "detect": layout.detectors.most,
        "stage": layout.tasks,
    }


def measured_cpus(request: ClusterRequest) -> int | None:
    """CPUs of a run that is all on this machine; those of a cluster's machines are not measured."""
    return None if request.address else int(ray.cluster_resources().get("CPU", 1))
