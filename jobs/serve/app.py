"""The HTTP app of the endpoint: its routes, and what every request passes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from aiohttp.abc import AbstractResolver
from fastapi import FastAPI

from jobs.serve import openapi
from jobs.serve.batches import file_routes, routes
from jobs.serve.batches.room import Room
from jobs.serve.batches.store import Store
from jobs.serve.engine.engine import Engine
from jobs.serve.http import chat, detections, health, models, no_batches, page
from jobs.serve.http.detecting import Service
from jobs.serve.http.images import ImageSource
from jobs.serve.http.keys import KeyRing
from jobs.serve.http.limits import Counter, LocalCounter
from jobs.serve.http.metrics import Metrics
from jobs.serve.http.middleware import Gate
from jobs.serve.http.totals import OwnTotals, Totals
from jobs.serve.protocol.error_handlers import install
from jobs.serve.settings.settings import ApiSettings


def make_app(
    settings: ApiSettings,
    engine: Engine,
    batches: Store | None = None,
    counter: Counter | None = None,
    totals: Totals | None = None,
    resolver: AbstractResolver | None = None,
    sends_request_ids: bool = True,
) -> FastAPI:
    """The app of one replica.

    Args:
        settings: see there.
        engine: detects in images.
        batches: the store of files and batches; None: neither is offered.
        counter: counts what keys use; None: in this process, for a server of one replica.
        totals: adds up the metrics of replicas; None: for a server of one replica.
        resolver: resolves names of hosts; None: as the system does.
        sends_request_ids: False where the server adds `x-request-id` to answers by itself.

    Raises as `KeyRing` if keys are needed and cannot be read.
    """
    keys = KeyRing(settings.keys) if settings.keys else None
    metrics = Metrics(totals or OwnTotals())
    counter = counter or LocalCounter()
    images = ImageSource(settings, metrics, resolver)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reporting = asyncio.create_task(metrics.keep_reporting())
        reading = asyncio.create_task(keys.keep_reading()) if keys else None
        yield
        reporting.cancel()
        if reading is not None:
            reading.cancel()
        await images.close()

    # The pages that FastAPI has of its own fetch scripts from elsewhere.
    app = FastAPI(title=openapi.TITLE, docs_url=None, redoc_url=None, lifespan=lifespan)
    service = Service(settings, engine, images, counter, metrics, int(time.time()))
    app.state.service = service
    app.state.probe = health.Probe(engine)
    app.state.store = batches
    app.state.room = Room(settings.max_stored_bytes)
    app.state.keys = keys
    routers = [detections.router, chat.router, models.router, health.router, page.router]
    of_batches = [file_routes.router, routes.router] if batches else [no_batches.router]
    for router in [*routers, *of_batches]:
        app.include_router(router)
    install(app)
    app.add_middleware(
        Gate,
        service=service,
        keys=keys,
        sends_request_ids=sends_request_ids,
    )
    described = openapi.describe(app, with_keys=keys is not None)
    app.openapi = lambda: described  # type: ignore[method-assign]
    return app
