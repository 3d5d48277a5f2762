"""Who asks: the key of a request, and what it may do."""

from dataclasses import dataclass

from fastapi import Request


@dataclass(frozen=True)
class Caller:
    """The holder of a key. Files and batches belong to a scope, which several keys may share."""

    key: str  # the id of the key, which is no secret; "" where no key is needed
    scope: str
    requests_per_minute: int | None = None  # None: no limit
    images_per_minute: int | None = None


def caller_of(request: Request) -> Caller:
    """The caller that the middleware found, as a dependency of routes."""
    found: Caller = request.state.caller
    return found
