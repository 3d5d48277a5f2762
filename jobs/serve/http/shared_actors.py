"""What all replicas of the ingress share, as named actors of Ray: limits, and totals of metrics."""

from contextlib import suppress
from typing import Any

import ray

from jobs.serve.http.limits import Kind, Remaining, Windows
from jobs.serve.http.totals import Samples, Sums

NAMES, NAMESPACE = ("detr-batch-limits", "detr-batch-metrics"), "detr-batch-serve"


def _named_actor(kind: type, name: str, namespace: str) -> Any:
    """The actor of this name. It starts anew, and empty, if its node is lost."""
    return (
        ray.remote(kind)
        .options(
            name=name, namespace=namespace, num_cpus=0, get_if_exists=True, max_restarts=-1,
            max_task_retries=1, lifetime="detached",  # not that of the replica that was first
        )
        .remote()
    )  # fmt: skip


def end_actors(namespace: str = NAMESPACE) -> None:
    """End the actors that there are."""
    for name in NAMES:
        with suppress(ValueError):  # there is none
            ray.kill(ray.get_actor(name, namespace))


class ActorCounter:
    """A counter in a named actor, which starts anew with a full minute if its node is lost."""

    def __init__(self, name: str = NAMES[0], namespace: str = NAMESPACE):
        self._actor = _named_actor(Windows, name, namespace)

    async def take(self, key: str, kind: Kind, limit: int, count: int) -> Remaining:
        found: Remaining = await self._actor.take.remote(key, kind, limit, count)
        return found


class ActorTotals:
    """The totals in a named actor."""

    def __init__(self, name: str = NAMES[1], namespace: str = NAMESPACE):
        self._actor = _named_actor(Sums, name, namespace)

    async def report(self, replica: str, samples: Samples) -> Samples:
        """Take the samples of a replica, and return the sums of all."""
        found: Samples = await self._actor.report.remote(replica, samples)
        return found
