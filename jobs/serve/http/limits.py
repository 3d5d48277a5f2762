"""The requests and images that each key has left in the current minute."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from jobs.serve.protocol.callers import Caller
from jobs.serve.protocol.errors import ApiError

WINDOW = 60.0  # seconds
Kind = Literal["requests", "images"]
KINDS: tuple[Kind, ...] = ("requests", "images")


@dataclass(frozen=True)
class Remaining:
    """What a key has left of one kind, after what was asked for was taken, if there was enough."""

    limit: int
    left: int
    reset: float  # seconds until all of the limit is there again
    taken: bool


class Windows:
    """Counts in fixed minutes; the minute of a key begins with the first request in it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._used: dict[tuple[str, Kind], tuple[float, int]] = {}  # when it began, and how many

    def take(self, key: str, kind: Kind, limit: int, count: int) -> Remaining:
        """Take `count` from the minute of a key, or nothing if there is too little left."""
        now = self._clock()
        began, used = self._used.get((key, kind), (now, 0))
        if now - began >= WINDOW:
            began, used = now, 0
        taken = used + count <= limit
        used += count if taken else 0
        self._used[key, kind] = began, used
        reset = WINDOW - (now - began) if used else 0.0
        return Remaining(limit, max(0, limit - used), reset, taken)


class Counter(Protocol):
    """The one place that counts for all replicas of the ingress."""

    async def take(self, key: str, kind: Kind, limit: int, count: int) -> Remaining: ...


class LocalCounter:
    """A counter in this process."""

    def __init__(self) -> None:
        self._windows = Windows()

    async def take(self, key: str, kind: Kind, limit: int, count: int) -> Remaining:
        return self._windows.take(key, kind, limit, count)


def limit_of(caller: Caller, kind: Kind) -> int | None:
    """The limit of a caller in a minute; None if there is none."""
    return caller.requests_per_minute if kind == "requests" else caller.images_per_minute


async def take(counter: Counter, caller: Caller, kind: Kind, count: int) -> dict[str, str]:
    """Take from the minute of a caller; return the headers that tell what is left.

    Raises ApiError with status 429 if there is too little left.
    """
    limit = limit_of(caller, kind)
    if limit is None:
        return {}
    state = await counter.take(caller.key, kind, limit, count)
    headers = {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(state.left),
        f"x-ratelimit-reset-{kind}": f"{state.reset:.3f}s",
    }
    if state.taken:
        return headers
    if count > limit:
        raise ApiError(
            429,
            f"The request has {count} {kind}, and the key may send {limit} in a minute: send fewer "
            "at a time.",
            "rate_limit_exceeded",
            headers={**headers, "x-should-retry": "false"},
        )
    wait = {
        "retry-after-ms": f"{state.reset * 1000:.0f}",
        "retry-after": f"{state.reset + 0.5:.0f}",
    }
    raise ApiError(
        429,
        f"The key may send {limit} {kind} in a minute, and has {state.left} left. The minute ends "
        f"in {state.reset:.1f} s.",
        "rate_limit_exceeded",
        headers={**headers, **wait},
    )
