"""The counter of limits as one named actor of Ray, which all replicas of the ingress ask."""

from contextlib import suppress
from typing import Any

import ray

from jobs.serve.http.limits import Kind, Remaining, Windows

NAME, NAMESPACE = "detr-batch-limits", "detr-batch-serve"


class ActorCounter:
    """A counter in a named actor, which starts anew with a full minute if its node is lost."""

    def __init__(self, name: str = NAME, namespace: str = NAMESPACE):
        self._actor: Any = (
            ray.remote(Windows)
            .options(
                name=name, namespace=namespace, num_cpus=0, get_if_exists=True, max_restarts=-1,
                max_task_retries=1, lifetime="detached",  # not that of the replica that was first
            )
            .remote()
        )  # fmt: skip

    @staticmethod
    def end(name: str = NAME, namespace: str = NAMESPACE) -> None:
        """End the actor, if there is one."""
        with suppress(ValueError):  # there is none
            ray.kill(ray.get_actor(name, namespace))

    async def take(self, key: str, kind: Kind, limit: int, count: int) -> Remaining:
        found: Remaining = await self._actor.take.remote(key, kind, limit, count)
        return found
