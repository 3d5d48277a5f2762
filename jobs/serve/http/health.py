"""`/health/live`, `/health/ready` and `/metrics`, which take no key."""

import asyncio
import base64
import time
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from jobs.serve.engine.engine import Engine, Overloaded
from jobs.serve.http.detecting import service_of
from jobs.serve.http.keys import KeyRing
from jobs.serve.http.metrics import CONTENT_TYPE
from jobs.serve.protocol.errors import ApiError

router = APIRouter(tags=["health"])
PROBE_SECONDS = 10.0  # time limit of an image that is detected in to see whether that works
FRESH_SECONDS = 5.0  # for which a result is not asked for again
# 1 x 1 pixel in PNG.
PROBE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


class Health(BaseModel):
    """That the server is well."""

    status: Literal["ok"] = "ok"


class Probe:
    """Whether the detectors detect. Requests that ask at once, or soon after, share one image."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")
        self._failure: str | None = "it was not asked yet"

    async def failure(self) -> str | None:
        """Why the detectors do not detect; None if they do. Busy ones do."""
        async with self._asking:
            if time.monotonic() - self._asked_at > FRESH_SECONDS:
                self._failure = await self._ask()
                self._asked_at = time.monotonic()
            return self._failure

    async def _ask(self) -> str | None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                (found,) = await self._engine.detect_all([PROBE])
        except Overloaded:
            return None
        except Exception as error:  # whatever it is, the server is not ready
            return type(error).__name__
        return None if found.is_ok else f"{found.status}: {found.error}"


@router.get("/health/live")
async def live() -> Health:
    """Whether this process answers."""
    return Health()


@router.get("/health/ready")
async def ready(request: Request) -> Health:
    """Whether keys are known, and the detectors detect a small image. 503 otherwise."""
    keys: KeyRing | None = request.app.state.keys
    if keys is not None and keys.is_stale:
        raise ApiError(503, "The file of the keys cannot be read any more.", "not_ready")
    probe: Probe = request.app.state.probe
    failure = await probe.failure()
    if failure is not None:
        raise ApiError(503, f"The detectors are not ready ({failure}).", "not_ready")
    return Health()


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Counts and times of all replicas, for Prometheus."""
    return Response(await service_of(request).metrics.as_text(), media_type=CONTENT_TYPE)
