"""Detect in the images of a request, whichever route they came by."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from jobs.serve.engine.engine import Engine, Labelled, Overloaded
from jobs.serve.engine.pixels import pixels_of
from jobs.serve.http.images import ImageFailed, ImageSource
from jobs.serve.http.limits import Counter, take
from jobs.serve.http.metrics import Metrics
from jobs.serve.protocol.answers import Detection, ImageAnswer, ImageError, Usage
from jobs.serve.protocol.callers import caller_of
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import shown
from jobs.serve.settings.settings import ApiSettings
from pipeline.schema import TOO_MANY_PIXELS
from pipeline.storage.urls import mask


@dataclass(frozen=True)
class Service:
    """What the routes and the middleware need: `request.app.state.service`."""

    settings: ApiSettings
    engine: Engine
    images: ImageSource
    counter: Counter
    metrics: Metrics
    started: int  # Unix time in seconds


def service_of(request: Request) -> Service:
    """The service of the app, as a dependency of routes."""
    found: Service = request.app.state.service
    return found


def check_model(service: Service, model: str) -> None:
    """Raise ApiError for a model that this server does not have."""
    if model != service.engine.model:
        raise ApiError(
            404,
            f"There is no model `{shown(model)}` here: this server has `{service.engine.model}`.",
            "model_not_found",
            "model",
        )


def expect(service: Service) -> Callable[[], None]:
    """Take a place for a request before its body is read; return what gives the place back.

    Raises ApiError if the server is busy.
    """
    try:
        return service.engine.expect()
    except Overloaded as error:
        raise _busy(error) from error


def _busy(error: Overloaded) -> ApiError:
    return ApiError(
        503,
        "The detectors are busy: try again.",
        "overloaded",
        headers={"retry-after": str(math.ceil(error.seconds))},
    )


async def detect(
    request: Request, images: Sequence[str | bytes], threshold: float | None
) -> list[ImageAnswer]:
    """Detect in images, each an address or the bytes of a file. One answer for each, in order.

    Raises ApiError if they are too many, if the key may send no more, or if the server is busy.
    """
    service = service_of(request)
    most = service.settings.max_images
    if len(images) > most:
        text = f"The request has {len(images)} images, and {most} are allowed."
        raise ApiError(400, text, "too_many_images")
    headers = await take(service.counter, caller_of(request), "images", len(images))
    request.state.headers |= headers
    least = service.settings.score_threshold if threshold is None else threshold
    fetched = _bounded(await _fetch_all(request, images), service.settings)
    usable = [image for image in fetched if not isinstance(image, ImageFailed)]
    request.state.leave()  # from here on, its images count
    try:
        files, pixels = [file for file, _ in usable], [own for _, own in usable]
        with request.state.take_images(len(usable)):
            labelled = iter(await service.engine.detect_all(files, pixels) if usable else [])
    except Overloaded as error:
        raise _busy(error) from error
    found = [
        _failed(index, image.code, image.message)
        if isinstance(image, ImageFailed)
        else _answer(index, next(labelled), least)
        for index, image in enumerate(fetched)
    ]
    for one in found:
        service.metrics.images.labels(one.error.code if one.error else "ok").inc()
    return found


def _client_of(request: Request) -> str:
    """Who asks: the key, or the address where no key is needed."""
    address = request.client.host if request.client else ""
    return caller_of(request).key or address


async def _fetch_all(request: Request, images: Sequence[str | bytes]) -> list[bytes | ImageFailed]:
    """The bytes of images. Raises ApiError if the server holds too many.

    If the client hangs up meanwhile, no download goes on, and ClientDisconnect is raised.
    """
    tasks = [asyncio.create_task(_fetch(request, image)) for image in images]
    fetched = asyncio.gather(*tasks)
    gone = asyncio.create_task(_wait_until_gone(request))
    try:
        first: list[asyncio.Future[Any]] = [fetched, gone]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not fetched.done():
            await gone
            raise ClientDisconnect
        return await fetched
    finally:  # what still comes for a request that has ended would be held for ever
        for task in [*tasks, gone]:
            task.cancel()


async def _wait_until_gone(request: Request) -> None:
    """Wait until the client of a request, whose body is read, hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _bounded(
    fetched: Sequence[bytes | ImageFailed], settings: ApiSettings
) -> list[tuple[bytes, int] | ImageFailed]:
    """The images with the pixels that they count as, and errors in place of some.

    Those are images with which a request would have too many in all. One that has more than a
    single one may have counts as nothing.
    """
    most, pixels = settings.max_request_pixels, 0
    found: list[tuple[bytes, int] | ImageFailed] = []
    for image in fetched:
        if isinstance(image, ImageFailed):
            found.append(image)
            continue
        own = pixels_of(image, settings.max_pixels)
        if own > settings.max_pixels:  # which the decoder refuses at once
            own = 0
        if pixels + own > most:
            text = (
                f"with this one, the images of the request have {pixels + own} pixels, and {most} "
                "are allowed: send fewer at a time"
            )
            found.append(ImageFailed(TOO_MANY_PIXELS, text))
        else:
            found.append((image, own))
            pixels += own
    return found


async def _fetch(request: Request, image: str | bytes) -> bytes | ImageFailed:
    source = service_of(request).images
    hold: Callable[[int], None] = request.state.hold
    try:
        if isinstance(image, bytes):
            return source.checked(image)
        encoded = await source.bytes_of(image, _client_of(request))
    except ImageFailed as error:
        return error
    hold(len(encoded))
    return encoded


def usage_of(service: Service, found: Sequence[ImageAnswer]) -> Usage:
    """What a request used. Images that failed cost nothing."""
    images = sum(one.status == "ok" for one in found)
    return Usage(images=images, cost_usd=service.settings.cost_of(images))


def _failed(index: int, code: str, message: str) -> ImageAnswer:
    error = ImageError(code=code, message=mask(message))
    return ImageAnswer(index=index, status="failed", error=error)


def _answer(index: int, labelled: Labelled, threshold: float) -> ImageAnswer:
    if not labelled.is_ok:
        failed = _failed(index, labelled.status, labelled.error or labelled.status)
        return failed.model_copy(update={"width": labelled.width, "height": labelled.height})
    found = zip(labelled.labels, labelled.scores, labelled.boxes, strict=True)
    kept = [
        Detection(label=label, score=score, box=box)
        for label, score, box in found
        if score >= threshold
    ]
    return ImageAnswer(
        index=index,
        status="ok",
        width=labelled.width,
        height=labelled.height,
        detections=kept,
    )
