"""The metrics of all replicas of the ingress together, so that it does not matter which is scraped.

Each replica reports its own every few seconds, and when it is scraped.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

REPORT_SECONDS = 5.0  # between two reports of a replica
GONE_SECONDS = 30.0  # after the last report, what a replica has in flight counts no more
# After the last report, the counts of a replica are added to those of all that ended. None reports
# again so late: Serve ends a replica that does not answer for some tens of seconds.
ENDED_SECONDS = 3600.0
OF_NOW = "_in_flight"  # how the names of gauges end
Key = tuple[str, str, tuple[tuple[str, str], ...]]  # family, sample, and its labels
Samples = Mapping[Key, float]


class Totals(Protocol):
    """The one place where the metrics of all replicas meet."""

    async def report(self, replica: str, samples: Samples) -> Samples:
        """Take the samples of a replica, and return the sums of all."""
        ...


class OwnTotals:
    """For a server of one replica: its samples are those of all."""

    async def report(self, _: str, samples: Samples) -> Samples:
        return samples


class Sums:
    """Adds up the newest samples of replicas. What ended replicas have counted stays."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._newest: dict[str, tuple[float, Samples]] = {}  # when it came, and what
        self._ended: defaultdict[Key, float] = defaultdict(float)  # sums over ended replicas

    def report(self, replica: str, samples: Samples) -> dict[Key, float]:
        """Take the samples of a replica, and return the sums of all."""
        now = self._clock()
        self._newest[replica] = now, samples
        self._add_ended(now)
        sums = self._ended.copy()
        for came, some in self._newest.values():
            for key, value in some.items():
                if not key[0].endswith(OF_NOW) or now - came <= GONE_SECONDS:
                    sums[key] += value
        return dict(sums)

    def _add_ended(self, now: float) -> None:
        """Add the counts of replicas that ended, and forget the replicas."""
        ended = [name for name, (came, _) in self._newest.items() if now - came > ENDED_SECONDS]
        for name in ended:
            for key, value in self._newest.pop(name)[1].items():
                if not key[0].endswith(OF_NOW):
                    self._ended[key] += value


def samples_of(families: Iterable[Metric]) -> dict[Key, float]:
    """The samples of a registry, without the times at which its counters were made."""
    return {
        (family.name, sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


class Summed(Collector):
    """The families of one, with the sums of all replicas."""

    def __init__(self, families: Iterable[Metric], sums: Samples):
        self._families, self._sums = families, sums

    def collect(self) -> Iterator[Metric]:
        """The families, each with its samples."""
        found: defaultdict[str, list[tuple[str, dict[str, str], float]]] = defaultdict(list)
        for (family, name, labels), value in self._sums.items():
            found[family].append((name, dict(labels), value))
        for one in self._families:
            summed = Metric(one.name, one.documentation, one.type)
            for sample in found[one.name]:
                summed.add_sample(*sample)
            yield summed
