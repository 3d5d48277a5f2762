"""The metrics of the ingress, as Prometheus reads them at `/metrics`."""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from jobs.serve.http.totals import REPORT_SECONDS, Summed, Totals, samples_of
from jobs.serve.protocol.answers import PATHS

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
NO_ROUTE = "none"  # requests for paths that do not exist, which would have a label each


class HasStatus(Protocol):
    """An answer, with the status that it was sent with."""

    status: int | None


class Metrics:
    """Counts requests and images. Each app has its own, and reports them."""

    def __init__(self, totals: Totals) -> None:
        self._totals, self._replica = totals, secrets.token_hex(8)
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "detr_batch_serve_requests",
            "Answered requests.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "detr_batch_serve_request_seconds",
            "Seconds from the head of a request to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "detr_batch_serve_requests_in_flight",
            "Requests that are not answered yet.",
            registry=self.registry,
        )
        self.images = Counter(
            "detr_batch_serve_images",
            "Images of answered requests.",
            ["status"],
            registry=self.registry,
        )
        self.downloaded = Counter(
            "detr_batch_serve_downloaded_bytes",
            "Bytes of images that addresses named.",
            registry=self.registry,
        )

    @contextmanager
    def request(self, scope: Any, answer: HasStatus) -> Iterator[None]:
        """Count a request, and the time that the block takes to answer it."""
        began = time.perf_counter()
        with self._in_flight.track_inprogress():
            try:
                yield
            finally:
                route = getattr(scope.get("route"), "path", _refused_at(scope["path"]))
                status = str(answer.status or "none")
                self._requests.labels(route, scope["method"], status).inc()
                self._seconds.labels(route).observe(time.perf_counter() - began)

    async def as_text(self) -> bytes:
        """The metrics of all replicas in the text format of Prometheus."""
        families = list(self.registry.collect())
        sums = await self._totals.report(self._replica, samples_of(families))
        registry = CollectorRegistry()
        registry.register(Summed(families, sums))
        return generate_latest(registry)

    async def keep_reporting(self, seconds: float = REPORT_SECONDS) -> None:
        """Report from time to time, until it is cancelled."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._totals.report(self._replica, samples_of(self.registry.collect()))
            except Exception as error:  # the actor starts anew: the next report has it all
                log.warning("metrics are not reported: %s", error)


def _refused_at(path: str) -> str:
    """The route of a request that was refused before its route was looked for."""
    return path if path in PATHS else NO_ROUTE
