"""The cost of a run: node-hours by kind of node, start-up and idle time included, and prices."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from jobs.accounting.prices import Machine
from pipeline.storage.clock import steady_time

SAMPLE_SECONDS = 10.0  # between two samples of the nodes of a cluster
GPU, CPU = "gpu", "cpu"  # kinds of nodes: with an accelerator, and without


class NodeCost(TypedDict):
    """The cost of the nodes of one kind."""

    kind: str  # GPU or CPU
    instance_type: str
    node_hours: float
    usd_on_demand: float
    usd_spot: float


class Cost(TypedDict):
    """The cost of a run in USD. Costs by kind of node are absent if one price was given for all."""

    usd: float
    usd_on_demand: float | None
    usd_spot: float | None
    nodes: list[NodeCost]
    basis: str  # source of the prices


@dataclass(frozen=True)
class Rates:
    """The prices of an hour: of all nodes together (`usd_per_hour`), or of a node of each kind."""

    usd_per_hour: float | None = None
    gpu: Machine | None = None
    cpu: Machine | None = None
    spot: bool = False
    note: str = ""  # how the machines of the run differ from those that are priced

    def bill(self, node_hours: Mapping[str, float], hours: float) -> Cost | None:
        """The cost of a run of `hours`, with `node_hours` by kind of node. None without a price."""
        if self.usd_per_hour is not None:
            usd = self.usd_per_hour * hours
            return Cost(
                usd=usd, usd_on_demand=None, usd_spot=None, nodes=[], basis="--usd-per-hour"
            )
        if self.gpu is None:
            return None
        nodes = []
        for kind, machine in ((GPU, self.gpu), (CPU, self.cpu or self.gpu)):
            spent = node_hours.get(kind, 0.0)
            if spent:
                nodes.append(
                    NodeCost(
                        kind=kind,
                        instance_type=machine.instance_type,
                        node_hours=spent,
                        usd_on_demand=spent * machine.on_demand,
                        usd_spot=spent * machine.spot,
                    )
                )
        on_demand = sum(node["usd_on_demand"] for node in nodes)
        spot = sum(node["usd_spot"] for node in nodes)
        return Cost(
            usd=spot if self.spot else on_demand,
            usd_on_demand=on_demand,
            usd_spot=spot,
            nodes=nodes,
            basis=self._basis(node_hours),
        )

    def least_usd_per_hour(self) -> float:
        """The price of an hour of a single node of the cheaper kind; 0 without a price."""
        if self.usd_per_hour is not None:
            return self.usd_per_hour
        machines = [one for one in (self.gpu, self.cpu) if one is not None]
        return min((one.spot if self.spot else one.on_demand for one in machines), default=0.0)

    def _basis(self, node_hours: Mapping[str, float]) -> str:
        assert self.gpu is not None
        used = [self.gpu] if node_hours.get(GPU) or not self.cpu else []
        used += [self.cpu] if self.cpu and node_hours.get(CPU) else []
        market = "spot" if self.spot else "on demand"
        names = " and ".join(machine.instance_type for machine in used)
        where = f"{names} {market} in {used[0].region}, read on {used[0].read_on}"
        if self.note:
            return f"{where}; another machine: {self.note}"
        if node_hours.get(GPU) and node_hours.get(CPU) and self.cpu is None:
            return f"{where}; nodes without a GPU are priced as such: give --cpu-instance-type"
        return where


class NodeMeter:
    """Counts node-hours by kind while the `with` block runs. It samples the nodes periodically.

    A node counts from the first sample in which it is alive, because Ray does not see machines that
    still boot. The nodes of the first sample count from the Unix time `started`.
    """

    def __init__(
        self,
        nodes: Callable[[], list[dict[str, Any]]],  # `ray.nodes`
        started: float,
        sample_seconds: float = SAMPLE_SECONDS,
    ):
        self._nodes, self._sample_seconds = nodes, sample_seconds
        self._started = self._last = started
        self._alive: dict[str, int] = {}
        self._hours: dict[str, float] = {GPU: 0.0, CPU: 0.0}
        # Node-hours, living nodes and Unix time of the last sample, as they belong together.
        self._sample = dict(self._hours), dict.fromkeys(self._hours, 0), started
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="nodes")

    def __enter__(self) -> "NodeMeter":
        self._alive = self._count()
        self._sample = dict(self._hours), self._alive, self._last
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def read(self) -> tuple[dict[str, float], float]:
        """Node-hours by kind of node, and hours of the run, both until now."""
        self._add()
        return dict(self._hours), (self._last - self._started) / 3600

    def so_far(self) -> tuple[dict[str, float], float]:
        """As `read`, with the nodes of the last sample: it asks no node, and never waits."""
        hours, alive, last = self._sample
        seconds = max(0.0, steady_time() - last)
        now = {kind: spent + alive.get(kind, 0) * seconds / 3600 for kind, spent in hours.items()}
        return now, (last + seconds - self._started) / 3600

    def usd(self, rates: Rates) -> tuple[float, float]:
        """The cost of the run until now, and of an hour of its nodes, in USD; 0 without a price.

        What changed since the last sample is not known.
        """
        cost = rates.bill(*self.so_far())
        hourly = rates.bill({kind: float(count) for kind, count in self._sample[1].items()}, 1.0)
        return (cost["usd"], hourly["usd"]) if cost and hourly else (0.0, 0.0)

    def _watch(self) -> None:
        while not self._stop.wait(self._sample_seconds):
            self._add()

    def _add(self) -> None:
        with self._lock:
            now = steady_time()
            for kind, count in self._alive.items():
                self._hours[kind] += count * max(0.0, now - self._last) / 3600
            self._last = now
            self._alive = self._count()
            self._sample = dict(self._hours), self._alive, now

    def _count(self) -> dict[str, int]:
        alive = [node for node in self._nodes() if node["Alive"]]
        gpus = sum(bool(node["Resources"].get("GPU")) for node in alive)
        return {GPU: gpus, CPU: len(alive) - gpus}
