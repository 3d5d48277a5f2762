"""The placement of a run: on which nodes its stages run, and whether they fit there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jobs.cluster.node_labels import Labels, matches
from jobs.cluster.request import ClusterRequest
from pipeline.dataflow import ACTOR_CPUS, TASK_CPUS, Layout, Pool
from pipeline.stages.detect import CPU_CALLS, CPU_THREADS, GPU_CALLS

ACCELERATOR = "ray.io/accelerator-type"  # label key of nodes whose GPU type Ray knows
# Actors start as long as it takes to process some images: fewer are not worth one more.
IMAGES_PER_CPU_DETECTOR, IMAGES_PER_PREPARER = 4, 100
TASKS_PER_DETECTOR = 8  # the minimum on a cluster, which may get more CPUs later


@dataclass(frozen=True)
class Node:
    """A node of Ray."""

    resources: Mapping[str, float]  # "CPU", "GPU", "memory" in bytes
    labels: Mapping[str, str]

    def holds(self, wanted: Mapping[str, float]) -> int:
        """How many workers that need the resources `wanted` fit on this node when it is empty."""
        return int(min(self.resources.get(name, 0) // amount for name, amount in wanted.items()))


@dataclass(frozen=True)
class Placement:
    """The device and the layout of a run. `label` runs by it, and `--dry-run` prints it."""

    device: str  # "cpu" or "cuda"
    layout: Layout

    def detector(self) -> dict[str, float]:
        """The resources that one detector takes from a node."""
        pool = self.layout.detectors
        kinds = {"CPU": pool.num_cpus, "GPU": pool.num_gpus, "memory": pool.memory}
        return {name: float(amount) for name, amount in kinds.items() if amount}

    def others(self) -> dict[str, float]:
        """The least resources of a node for the other stages, and a detector that may be on it."""
        pool = self.layout.detectors
        beside = pool.num_cpus if pool.nodes in ({}, self.layout.nodes) else 0
        return {"CPU": ACTOR_CPUS + 2 * TASK_CPUS + beside}

    def demand(self) -> list[dict[str, Any]]:
        """The least resources of the run, in the form that Ray's autoscaler takes."""
        pool = self.layout.detectors
        return [
            *[{"resources": self.detector(), "label_selector": pool.nodes}] * pool.fewest,
            {"resources": self.others(), "label_selector": self.layout.nodes},
        ]

    def uses(self, node: Node) -> bool:
        """Whether a stage may run on the node."""
        counts = node.resources.get("CPU") or node.resources.get("GPU")
        rules = (self.layout.detectors.nodes, self.layout.nodes)
        return bool(counts and any(matches(node.labels, rule) for rule in rules))

    def fitting(self, nodes: Sequence[Node]) -> int:
        """How many detectors fit on `nodes`, if they are empty and no detector has a place yet."""
        wanted, labels = self.detector(), self.layout.detectors.nodes
        return sum(node.holds(wanted) for node in nodes if matches(node.labels, labels))

    def lacks(self, nodes: Sequence[Node]) -> str | None:
        """The demand of the run that does not fit on `nodes`, even if they are empty, or None."""
        lacking = []
        pool, wanted, fitting = self.layout.detectors, self.detector(), self.fitting(nodes)
        if fitting < pool.fewest:
            lacking.append(
                f"{pool.fewest} detectors want {_amounts(wanted)} each{_where(pool.nodes)}, and "
                f"{fitting} fit"
            )
        others = self.others()
        if not any(n.holds(others) for n in nodes if matches(n.labels, self.layout.nodes)):
            lacking.append(
                f"reading and preparing want {_amounts(others)}{_where(self.layout.nodes)}, and no "
                "node has it"
            )
        return "; ".join(lacking) or None

    def as_text(self) -> str:
        """The text that --dry-run prints."""
        layout, pool = self.layout, self.layout.detectors
        count = f"{pool.fewest} to {pool.most}" if pool.most > pool.fewest else str(pool.fewest)
        most = (
            "as demand and CPUs allow" if layout.preparers is None else f"up to {layout.preparers}"
        )
        tasks = f"up to {layout.tasks} readers and {layout.tasks} stagers"
        return (
            f"{'detectors':<14} {count} of {_amounts(self.detector())}{_where(pool.nodes)}\n"
            f"{'other stages':<14} preparers {most}, {ACTOR_CPUS:.2g} CPU each; {tasks}"
            f"{_where(layout.nodes)}"
        )


def placement_on(request: ClusterRequest, nodes: Sequence[Node], cluster: bool) -> Placement:
    """Place a run on the `nodes` that exist now. A `cluster` may get more nodes later.

    On CPUs a node has a detector for every CPU_THREADS of its cores, as far as its memory holds
    them and there are images for them. No run has more than `most_detectors`.
    """
    device = _device(request, nodes)
    on_cpu = device == "cpu"
    fewest, most = request.fewest_gpus, request.most_gpus
    if on_cpu:
        wanted = {"CPU": ACTOR_CPUS, "memory": request.memory}
        fits = (
            min(node.holds(wanted), max(1, int(node.resources["CPU"]) // CPU_THREADS))
            for node in nodes
            if node.holds(wanted) and matches(node.labels, request.detect_on)
        )
        fewest = most = _count_actors(sum(fits), request.images, IMAGES_PER_CPU_DETECTOR)
    if request.most_detectors is not None:
        fewest, most = (min(count, request.most_detectors) for count in (fewest, most))
    cpus_of_each, gpus_of_each, calls = (ACTOR_CPUS, 0, CPU_CALLS) if on_cpu else (0, 1, GPU_CALLS)
    pool = Pool(fewest, most, cpus_of_each, gpus_of_each, request.memory, calls, request.detect_on)
    cpus = int(sum(node.resources.get("CPU", 0) for node in nodes))
    if cluster:  # it may get more CPUs later
        preparers, tasks = None, max(TASKS_PER_DETECTOR * most, 4 * cpus)
    else:
        preparers, tasks = max(1, cpus // 2 if on_cpu else cpus), max(2, 2 * cpus)
    nodes_of_others = request.prepare_on or _off_accelerators(nodes, most)
    theirs = (n.resources.get("CPU", 0) for n in nodes if matches(n.labels, nodes_of_others))
    at_start = _count_actors(int(sum(theirs)) // 2, request.images, IMAGES_PER_PREPARER)
    return Placement(device, Layout(pool, preparers, at_start, tasks, nodes_of_others))


def _count_actors(fitting: int, images: int | None, images_per_actor: int) -> int:
    """As many actors as fit and as `images` are worth, at least one."""
    if images is not None:
        fitting = min(fitting, -(-images // images_per_actor))
    return max(1, fitting)


def _device(request: ClusterRequest, nodes: Sequence[Node]) -> str:
    """The device of the detectors. "auto" is "cuda" if there are GPUs now.

    A cluster that starts GPU nodes on demand has none at first: the user has to name "cuda" there.
    """
    if request.device != "auto":
        return request.device
    nodes_have_gpus = any(node.resources.get("GPU") for node in nodes)
    torch_has_gpus = not request.address and torch.cuda.is_available()
    return "cuda" if nodes_have_gpus or torch_has_gpus else "cpu"


def _off_accelerators(nodes: Sequence[Node], detectors: int) -> Labels:
    """A rule that keeps CPU stages off nodes with accelerators, whose CPUs feed the accelerators.

    The rule is empty unless other nodes have a CPU for each detector: fewer CPUs would starve the
    detectors.
    """
    kinds = sorted({node.labels[ACCELERATOR] for node in nodes if node.labels.get(ACCELERATOR)})
    others = sum(n.resources.get("CPU", 0) for n in nodes if ACCELERATOR not in n.labels)
    return {ACCELERATOR: f"!in({', '.join(kinds)})"} if kinds and others >= detectors else {}


def _where(labels: Labels) -> str:
    return f" on nodes with {', '.join(f'{k}={v}' for k, v in labels.items())}" if labels else ""


def _amounts(wanted: Mapping[str, float]) -> str:
    """Resources as text, such as "1 GPU and 2.0 GiB of memory"."""
    words = [
        f"{amount / (1 << 30):.1f} GiB of memory" if name == "memory" else f"{amount:.2g} {name}"
        for name, amount in wanted.items()
    ]
    return " and ".join(words)
