"""Start or join Ray for a run, and check it before anything is computed."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from urllib.parse import urlsplit

import psutil
import ray
import torch
from ray.autoscaler.v2.sdk import request_cluster_resources
from ray.exceptions import AuthenticationError, GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cluster.placement import Node, Placement, placement_on
from jobs.cluster.probe import PACKAGES, probe
from jobs.cluster.ray_internals import (
    AutoscalerView,
    no_imports_from_this_folder,
    private_ray,
    read_autoscaler,
)
from jobs.cluster.ray_lines import hush_actor_warning, hush_logs
from jobs.cluster.request import ClusterRequest
from pipeline.dataflow import ACTOR_CPUS, Layout
from pipeline.schema import Member
from pipeline.storage.errors import CommandFailed, InputError
from pipeline.storage.limits import low_limit
from pipeline.storage.urls import mask

START_TOO_SLOW = "timed out during startup"  # in Ray's error where its first node is late
CONNECT_SECONDS = 10.0  # to wait for a connection to a cluster
JOIN_SECONDS = 30.0  # to wait for nodes that join, and for the autoscaler
LOOK_SECONDS = 1.0  # between two looks at the cluster
PROBE_SECONDS = 120.0  # for all nodes; a worker starts, and fetches the code of the job
# Ray's own settings of a Ray that ends with this process. By default `ray.init` waits for a worker
# for each CPU, although the first actors want others.
LOCAL_SETTINGS = {"prestart_worker_first_driver": False}


def check_machines(request: ClusterRequest) -> None:
    """Raise InputError for an impossible request, before Ray is started or joined."""
    if request.address and request.address != "auto":
        check_reachable(request.address)
    if request.address:
        return
    gpus = torch.cuda.device_count()
    if request.device == "cuda" and not gpus:
        raise InputError(
            f"{request.gpu_option}: this machine has no GPU that torch can use; leave the option "
            "out to run on its CPUs, or pass --address of a cluster that has GPUs"
        )
    if request.device != "cpu" and 0 < gpus < request.fewest_gpus:
        raise InputError(f"--num-gpus {request.fewest_gpus}: this machine has {gpus}")


def check_reachable(address: str) -> None:
    """Raise InputError if nothing listens at a Ray address. Ray itself would try for ten minutes.

    `address` is `host:port` or `ray://host:port`.
    """
    target = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if target.hostname is None or target.port is None:
            raise ValueError("give host:port, ray://host:port or auto")
        socket.create_connection((target.hostname, target.port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers there ({error})") from error


def start_ray(address: str | None) -> None:
    """Connect to the cluster at an address, or start a local one that ends with this process."""
    hush_logs()
    if ray.is_initialized():
        return
    start = nullcontext() if address else private_ray()
    if not address and (limit := low_limit()) is not None:
        raise CommandFailed(f"{limit}, then run the same command again")
    address = address or "local"  # never an old cluster that still runs on this machine
    try:
        with start, no_imports_from_this_folder():
            ray.init(
                address=address,
                log_to_driver=False,
                include_dashboard=False,
                configure_logging=False,
                _system_config=None if address != "local" else LOCAL_SETTINGS,
            )
    except (AuthenticationError, ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        if address == "local":
            raise InputError(f"Ray does not start on this machine: {reason}") from error
        raise InputError(
            f"--address {address}: no Ray cluster answers there, or it wants another token (set "
            f"RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH): {reason}"
        ) from error
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            place = "on this machine" if address == "local" else f"for --address {address}"
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise CommandFailed(f"Ray does not start {place}: {reason}") from error
        raise InputError(
            f"--address {address}: {' '.join(str(error).split())}. Use the image of "
            "infra/Dockerfile on all nodes, or install the cluster's versions here"
        ) from error
    except Exception as error:  # Ray (2.60) raises this type where its first node is late
        if START_TOO_SLOW not in str(error):
            raise
        raise CommandFailed(
            "Ray did not start within half a minute, as it does where a machine is very busy or "
            "short of memory: nothing is lost, run the same command again"
        ) from error
    hush_actor_warning()
    _take_sigterm_back()


def _take_sigterm_back() -> None:
    """Let Python alone handle SIGTERM again.

    Ray (2.60) also handles it in C++, which prints a stack and aborts the process after three
    seconds, even if it is about to release its lock.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def alive_nodes() -> dict[str, Node]:
    """The alive nodes of the cluster, by node id."""
    return {
        node["NodeID"]: Node(node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    }


def this_machine() -> Node:
    """This machine as a node of a local Ray. The memory that Ray keeps for itself is included."""
    available = psutil.virtual_memory().available
    return Node({"CPU": os.cpu_count() or 1, "memory": available}, {})


def placement_without_starting(request: ClusterRequest) -> Placement:
    """The placement of a run, for --dry-run. Joins a named cluster, but starts no local Ray."""
    if not request.address:
        return placement_on(request, [this_machine()], cluster=False)
    start_ray(request.address)
    return placement_on(request, list(alive_nodes().values()), cluster=True)


def place_for_probe(request: ClusterRequest) -> Placement:
    """Start or join Ray, and place a run of which a sample is labelled, for --dry-run.

    Nothing is written: whether workers can write OUTPUT is not tried. Raises InputError if the run
    does not fit on the nodes that there are.
    """
    start_ray(request.address)
    nodes = list(alive_nodes().values())
    placement = placement_on(request, nodes, cluster=bool(request.address))
    if lacks := placement.lacks(nodes):
        raise InputError(f"a probe does not fit now: {lacks}. --probe 0 leaves it out")
    return placement


def start_or_join_ray(
    request: ClusterRequest, output: str, first: Member, access: str | None = None
) -> Placement:
    """Start or join Ray, and place the run on it. Raises InputError if the run cannot go there.

    On a cluster, workers are checked too: their package versions, and their access to `output`
    and to INPUT (its `first` object, by `access`, see storage/access.py).
    """
    start_ray(request.address)
    if not request.address:
        nodes = list(alive_nodes().values())
        placement = placement_on(request, nodes, cluster=False)
        if lacks := placement.lacks(nodes):
            raise InputError(f"this machine is too small: {lacks}")
        return placement
    placement = wait_until_it_fits(request)
    check_workers(placement, output, first, access)
    return placement


def wait_until_it_fits(request: ClusterRequest, seconds: float = JOIN_SECONDS) -> Placement:
    """Place the run on the cluster. Raises InputError after `seconds` if it can never fit.

    It waits for nodes that are about to join, and asks the autoscaler whether it can start nodes.
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
        request_cluster_resources(gcs, [])  # from now on, waiting actors request the nodes
    has = _nodes_as_text(list(alive_nodes().values()))
    raise InputError(
        f"the cluster cannot hold the run: {lacks}. {has} Give other "
        "--num-gpus, --device, --detect-on or --prepare-on, or a larger cluster"
    )


def _look_at_cluster(request: ClusterRequest) -> tuple[Placement, str | None]:
    """The placement of the run on the nodes that exist now, and the demand that they lack."""
    nodes = list(alive_nodes().values())
    placement = placement_on(request, nodes, cluster=True)
    return placement, placement.lacks(nodes)


def _can_be_made(view: AutoscalerView, seen: int, placement: Placement) -> bool:
    """Whether the autoscaler was updated twice since version `seen` and can meet the demand."""
    ours = _amounts(one["resources"] for one in placement.demand())
    refused = [_amounts(bundles) for bundles in view.infeasible]
    return view.version > seen + 1 and ours not in refused


def _amounts(bundles: Iterable[Mapping[str, float]]) -> set[tuple[tuple[str, float], ...]]:
    """A request in a form that can be compared, to tell it from requests of other jobs."""
    return {tuple(sorted(bundle.items())) for bundle in bundles}


def _nodes_as_text(nodes: Sequence[Node]) -> str:
    """The resources of the nodes, in one sentence."""
    resources = {name: sum(n.resources.get(name, 0) for n in nodes) for name in ("CPU", "GPU")}
    memory = max((node.resources.get("memory", 0) for node in nodes), default=0) / (1 << 30)
    return (
        f"It has {len(nodes)} nodes with {resources['CPU']:g} CPUs and {resources['GPU']:g} GPUs, "
        f"and {memory:.1f} GiB of memory at most."
    )


def check_workers(placement: Placement, output: str, first: Member, access: str | None) -> None:
    """Raise InputError if a node of the run has other versions, or no access to OUTPUT or INPUT."""
    versions = {name: version(name) for name in PACKAGES}
    task = ray.remote(num_cpus=0, max_retries=1)(probe)
    strategies = [
        NodeAffinitySchedulingStrategy(node_id, soft=True)
        for node_id, node in alive_nodes().items()
        if placement.uses(node)
    ]
    pending = [
        task.options(scheduling_strategy=strategy).remote(versions, output, first, access)
        for strategy in strategies
    ]
    try:
        answers = ray.get(pending, timeout=PROBE_SECONDS)
    except GetTimeoutError as error:
        raise InputError(f"no worker of Ray started within {PROBE_SECONDS:.0f} s") from error
    except ray.exceptions.RayError as error:
        reason = mask(str(error).strip().splitlines()[-1])
        raise InputError(f"workers of the cluster cannot run detr-batch: {reason}") from error
    if problems := [answer for answer in answers if answer]:
        raise InputError(problems[0])


def stage_workers(layout: Layout) -> dict[str, int]:
    """How many workers of each stage can work at once on the cluster as it is now."""
    cpus = ray.cluster_resources().get("CPU", 1.0)
    fit = max(1, int(cpus / ACTOR_CPUS))
    return {
        "read": layout.tasks,
        "prepare": min(layout.preparers or fit, fit),
        "detect": layout.detectors.most,
        "stage": layout.tasks,
    }


def measured_cpus(request: ClusterRequest) -> int | None:
    """The CPUs of a run on this machine. None on a cluster, whose CPU time is not measured."""
    return None if request.address else int(ray.cluster_resources().get("CPU", 1))
