"""Where the stages of a run go on a cluster, and whether they fit there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.label_options import LabelOptions
from jobs.node_labels import matches, selector
from pipeline.dataflow import ACTOR_CPUS, TASK_CPUS, Labels

ACCELERATOR = "ray.io/accelerator-type"  # what Ray labels nodes with whose GPUs it knows
LEAST_TASKS = 8  # a detector, on a cluster whose CPUs may come later
# Of the logical memory of a node. A detector of the largest model takes 1.3 GiB on a CPU for one
# picture (`bench model`, 2026-11-24), and as much of the host for loading where it is on a GPU.
MEMORY, TINY_MEMORY = 2 << 30, 512 << 20


@dataclass(frozen=True)
class Node:
    """A machine as Ray counts it."""

    resources: Mapping[str, float]  # "CPU", "GPU", "memory" in bytes
    labels: Mapping[str, str]

    def holds(self, wanted: Mapping[str, float]) -> int:
        """How many that want so much fit on it, when it is empty."""
        return int(min(self.resources.get(name, 0) // amount for name, amount in wanted.items()))


@dataclass(frozen=True)
class Placement:
    """What runs where: `label` goes by it, and `--dry-run` prints it."""

    device: str  # "cpu" or "cuda"
    fewest: int  # detectors
    most: int
    memory: int  # bytes of a detector
    detect_on: Labels
    prepare_on: Labels
    preparers: int | None  # at most; None: as many as are needed and fit
    tasks: int  # readers, and stagers, at most

    @property
    def detector_cpus(self) -> float:
        """What a detector holds of a node's CPUs, in Ray's count: on CPUs it takes all of them."""
        return ACTOR_CPUS if self.device == "cpu" else 0

    @property
    def detector_gpus(self) -> float:
        return 0 if self.device == "cpu" else 1

    def detector(self) -> dict[str, float]:
        """What one detector takes of a node."""
        kinds = {"CPU": self.detector_cpus, "GPU": self.detector_gpus, "memory": self.memory}
        return {name: float(amount) for name, amount in kinds.items() if amount}

    @property
    def _beside(self) -> float:
        """What detectors may hold of the CPUs of a node that prepares."""
        return self.detector_cpus if self.detect_on in ({}, self.prepare_on) else 0

    def demand(self) -> list[dict[str, Any]]:
        """What the run needs at least, as Ray's autoscaler takes it."""
        others = {"CPU": ACTOR_CPUS + 2 * TASK_CPUS + self._beside}
        return [{"resources": self.detector(), "label_selector": self.detect_on}] * self.fewest + [
            {"resources": others, "label_selector": self.prepare_on}
        ]

    def uses(self, node: Node) -> bool:
        """Whether a stage may be on it."""
        counts = node.resources.get("CPU") or node.resources.get("GPU")
        chosen = any(matches(node.labels, rule) for rule in (self.detect_on, self.prepare_on))
        return bool(counts and chosen)

    def lacks(self, nodes: Sequence[Node]) -> str | None:
        """What `nodes`, were they empty, do not hold of the run; None where they hold it."""
        lacking = []
        wanted = self.detector()
        there = sum(node.holds(wanted) for node in nodes if matches(node.labels, self.detect_on))
        if there < self.fewest:
            lacking.append(
                f"{self.fewest} detectors want {_amounts(wanted)} each{_where(self.detect_on)}, "
                f"and {there} fit"
            )
        others = self.demand()[-1]["resources"]
        if not any(n.holds(others) for n in nodes if matches(n.labels, self.prepare_on)):
            lacking.append(
                f"reading and preparing want {_amounts(others)}{_where(self.prepare_on)}, and no "
                "node has it"
            )
        return "; ".join(lacking) or None

    def as_text(self) -> str:
        """For --dry-run."""
        detector = _amounts(self.detector())
        range_ = f"{self.fewest} to {self.most}" if self.most > self.fewest else str(self.fewest)
        most = "as demand and CPUs allow" if self.preparers is None else f"up to {self.preparers}"
        tasks = f"up to {self.tasks} readers and {self.tasks} stagers"
        return (
            f"{'detectors':<14} {range_} of {detector}{_where(self.detect_on)}\n"
            f"{'other stages':<14} preparers {most}, {ACTOR_CPUS:.2g} CPU each; {tasks}"
            f"{_where(self.prepare_on)}"
        )


def placed(options: LabelOptions, nodes: Sequence[Node], cluster: bool) -> Placement:
    """Where a run goes, on the `nodes` that are there; those of a `cluster` may become more.

    On CPUs a detector takes all cores of its machine, so there is one on each that is there.
    """
    device = options.resolved_device(any(node.resources.get("GPU") for node in nodes))
    detect_on, chosen = selector(options.detect_on), selector(options.prepare_on)
    memory = TINY_MEMORY if options.model == "shapes-tiny" else MEMORY
    fewest, most = options.gpus()
    if device == "cpu":
        fits = [n for n in nodes if n.holds({"CPU": ACTOR_CPUS, "memory": memory})]
        fewest = most = max(1, sum(matches(node.labels, detect_on) for node in fits))
    cpus = sum(node.resources.get("CPU", 0) for node in nodes)
    share = cpus if device != "cpu" else cpus // 2
    return Placement(
        device,
        fewest,
        most,
        memory,
        detect_on,
        chosen or _off_accelerators(nodes, most),
        preparers=None if cluster else max(1, int(share)),
        tasks=max(LEAST_TASKS * most, int(4 * cpus)) if cluster else max(2, int(2 * cpus)),
    )


def _off_accelerators(nodes: Sequence[Node], detectors: int) -> Labels:
    """Keeps CPU stages off nodes with accelerators, whose CPUs feed these.

    Only where other nodes have a CPU for each detector: fewer would starve them.
    """
    kinds = sorted({node.labels[ACCELERATOR] for node in nodes if node.labels.get(ACCELERATOR)})
    others = sum(n.resources.get("CPU", 0) for n in nodes if ACCELERATOR not in n.labels)
    return {ACCELERATOR: f"!in({', '.join(kinds)})"} if kinds and others >= detectors else {}


def _where(labels: Labels) -> str:
    return f" on nodes with {', '.join(f'{k}={v}' for k, v in labels.items())}" if labels else ""


def _amounts(wanted: Mapping[str, float]) -> str:
    """ "1 GPU and 2.0 GiB of memory"."""
    words = [
        f"{amount / (1 << 30):.1f} GiB of memory" if name == "memory" else f"{amount:.2g} {name}"
        for name, amount in wanted.items()
    ]
    return " and ".join(words)
