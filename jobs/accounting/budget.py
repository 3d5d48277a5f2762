"""The budget of a command: the money and the time after which it ends."""

import math
import time
from dataclasses import dataclass, field

from jobs.accounting.node_hours import NodeMeter, Rates
from pipeline.storage.clock import steady_time

# Kept free for publishing: the page takes 3 s, the start of Ray's tasks and the commit about as
# long on a machine that does nothing else. Each image takes longer (`seconds_left`).
PUBLISH_SECONDS = 8.0


@dataclass
class Budget:
    """The limits of one command. Time counts from its start, money as its reports count it.

    `nodes` counts the node-hours of the run under way; None before a first run began.
    """

    began: float  # Unix time by `steady_time`
    rates: Rates
    max_usd: float | None = None
    max_hours: float | None = None
    until: float | None = None  # Unix time
    names: dict[str, str] = field(default_factory=dict)  # the limits as the user gave them
    nodes: NodeMeter | None = None
    spent_usd: float = 0.0  # by earlier runs of this command

    @property
    def is_limited(self) -> bool:
        return bool(self.names)

    def seconds_left(self, images: int = 0, publish_seconds: float = 0.0) -> float:
        """Seconds until labelling must end, so that `images` images can be published in time.

        `publish_seconds` is the time that publishing took for each image in earlier runs. Infinite
        without a limit.
        """
        left = min((seconds for seconds, _ in self._limits()), default=math.inf)
        return left - PUBLISH_SECONDS - images * publish_seconds

    def reason(self) -> str:
        """The limit that is reached first, as the user gave it."""
        return min(self._limits())[1]

    def begin_run(self, nodes: NodeMeter) -> None:
        """Count the money of a run from now on; `nodes` counts its node-hours."""
        self.nodes = nodes

    def end_run(self) -> None:
        """Count the run under way as ended."""
        if self.nodes is not None:
            self.spent_usd += self.nodes.usd(self.rates)[0]
            self.nodes = None

    def _limits(self) -> list[tuple[float, str]]:
        """The seconds that each limit leaves, and its name."""
        found = []
        if self.max_hours is not None:
            left = 3600 * self.max_hours - (steady_time() - self.began)
            found.append((left, self.names["max_hours"]))
        if self.until is not None:
            found.append((self.until - time.time(), self.names["until"]))
        if self.max_usd is not None:
            found.append((self._seconds_of_money(self.max_usd), self.names["max_usd"]))
        return found

    def _seconds_of_money(self, most: float) -> float:
        """Seconds until `most` USD are spent, with the nodes that there are now."""
        if self.nodes is not None:
            spent, hourly = self.nodes.usd(self.rates)
        else:  # one node at least runs since the start, or since the end of the last run
            hourly = self.rates.least_usd_per_hour()
            spent = 0.0 if self.spent_usd else hourly * (steady_time() - self.began) / 3600
        left = most - self.spent_usd - spent
        return 3600 * left / hourly if hourly else math.inf if left > 0 else -math.inf
