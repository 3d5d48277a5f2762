"""What every request passes: its id, its key, its limits, and bounds on its body."""

import asyncio
import re
import secrets
import time
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.serve.http.detecting import Service, expect
from jobs.serve.http.keys import KeyRing
from jobs.serve.http.limits import take
from jobs.serve.http.places import Places
from jobs.serve.protocol.answers import PATHS
from jobs.serve.protocol.callers import Caller
from jobs.serve.protocol.error_handlers import response_of, unexpected_error
from jobs.serve.protocol.errors import ApiError

EVERYBODY = Caller("", "everybody")  # where no key is needed
UPLOADS = "/v1/files"
LEAST_CAME = 64 << 10  # bytes of an upload that come while it is waited for `body_seconds`
TAIL = 16 << 10  # bytes at the end of an answer that the system takes, whatever its client reads
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # of a client, which may go into logs


class Gate:
    """ASGI middleware around the app. It answers what it refuses itself."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        keys: KeyRing | None,
        sends_request_ids: bool = True,
    ):
        self._app, self._service, self._keys = app, service, keys
        self._settings = service.settings
        self._sends_request_ids = sends_request_ids
        self._held = 0  # bytes of bodies and of downloads
        self._requests = Places(self._settings.requests_at_once, "requests of the key")
        self._bodies = Places(self._settings.bodies_at_once, "requests whose images still come")
        self._uploads = Places(self._settings.uploads_at_once, "uploads")
        self._images = Places(self._settings.images_at_once, "images of the key")
        self._bytes = Places(self._settings.held_bytes // 2, "bytes of bodies and downloads")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
        state["headers"] = {}
        if self._sends_request_ids:
            state["headers"]["x-request-id"] = state["request_id"]
        answer = _Answer(send, state["headers"])
        with self._service.metrics.request(scope, answer):
            try:
                if scope["path"].startswith("/v1/"):
                    scope["state"]["caller"] = self._caller(headers)
                with self._places(scope):
                    await self._admit(scope, headers, receive, answer)
                    await answer.finish()
            except ApiError as error:
                await self._refuse(error, scope, receive, answer)
            except Exception as error:
                if answer.status is not None:  # a part is sent: the connection breaks off
                    raise
                await self._refuse(unexpected_error(error), scope, receive, answer)

    @contextmanager
    def _places(self, scope: Scope) -> Iterator[None]:
        """Take the places of a request during the block. Raises ApiError with status 429."""
        caller, client = scope["state"].get("caller"), scope.get("client")
        with ExitStack() as stack:
            if caller is not None and caller != EVERYBODY:
                stack.enter_context(self._requests.taken(caller.key))
            if caller is not None and _is_upload(scope):
                address = client[0] if client else ""
                stack.enter_context(self._uploads.taken(caller.key or address))
            yield

    async def _admit(
        self, scope: Scope, headers: Headers, receive: Receive, answer: "_Answer"
    ) -> None:
        state, path = scope["state"], scope["path"]
        if path not in PATHS or scope["method"] != "POST":
            await self._answer(scope, headers, receive, answer)
            return
        with ExitStack() as stack:  # what is refused uses up no limit of its key
            if state["caller"] != EVERYBODY:
                stack.enter_context(self._bodies.taken(state["caller"].key))
            stack.callback(expect(self._service))
            state["leave"] = stack.close
            await self._answer(scope, headers, receive, answer)

    async def _answer(
        self, scope: Scope, headers: Headers, receive: Receive, answer: "_Answer"
    ) -> None:
        state, path = scope["state"], scope["path"]
        if path.startswith("/v1/"):
            counter = self._service.counter
            state["headers"] |= await take(counter, state["caller"], "requests", 1)
        key = state["caller"].key if "caller" in state else ""
        state["take_images"] = partial(self._images.taken, key) if key else nullcontext
        body = _Body(receive, self, key, is_upload=_is_upload(scope))
        body.check_announced(headers)
        state["hold"] = body.hold
        try:
            await self._app(scope, body, answer)
        finally:
            body.release()

    def _caller(self, headers: Headers) -> Caller:
        """The holder of the key of a request. Raises ApiError with status 401."""
        if self._keys is None:
            return EVERYBODY
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise ApiError(
                401,
                "No key was given: send it in the header, as Authorization: Bearer KEY.",
                "missing_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        caller = self._keys.caller(secret.strip())
        if caller is None:
            raise ApiError(
                401,
                "The key is wrong or revoked: ask the operator of this server for another.",
                "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return caller

    async def _refuse(
        self, error: ApiError, scope: Scope, receive: Receive, answer: "_Answer"
    ) -> None:
        await response_of(error)(scope, receive, answer)

    def hold(self, size: int, key: str) -> None:
        """Count bytes that a request of a key, "" for none, holds.

        Raises ApiError if all requests hold too many, or those of the key.
        """
        if self._held + size > self._settings.held_bytes:
            raise ApiError(
                503,
                "The server holds as many images as it can: try again.",
                "overloaded",
                headers={"retry-after": "1"},
            )
        if key:
            self._bytes.take(key, size)
        self._held += size

    def release(self, size: int, key: str) -> None:
        """Count bytes of a body as gone."""
        self._held -= size
        if key:
            self._bytes.give(key, size)

    def most_bytes(self, is_upload: bool) -> int:
        """Bytes of one body."""
        settings = self._settings
        return settings.max_upload_bytes if is_upload else settings.max_body_bytes

    @property
    def body_seconds(self) -> float:
        """Seconds in which a body must have come."""
        return self._settings.body_seconds


def _is_upload(scope: Scope) -> bool:
    return bool(scope["path"] == UPLOADS and scope["method"] == "POST")


class _Body:
    """The body of a request, which is counted while it comes."""

    def __init__(self, receive: Receive, gate: Gate, key: str, is_upload: bool):
        self._receive, self._gate, self._key, self._is_upload = receive, gate, key, is_upload
        self._came = self._held = 0  # bytes
        self._is_whole = False
        self._left = gate.body_seconds  # for which it is waited for more
        self._since = 0  # bytes that have come since an upload had all of them left

    def check_announced(self, headers: Headers) -> None:
        """Refuse a body whose announced length is too large, before anything is read."""
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._gate.most_bytes(self._is_upload):
            raise self._too_large()

    async def __call__(self) -> Message:
        message = await self._next()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            if self._came + size > self._gate.most_bytes(self._is_upload):
                raise self._too_large()
            self._came += size
            self._since += size
            if not self._is_upload:  # which a file on the disk takes
                self.hold(size)
            self._is_whole = not message.get("more_body", False)
        return message

    async def _next(self) -> Message:
        if self._is_whole:  # then it waits until the client is gone
            return await self._receive()
        if self._is_upload and self._since >= LEAST_CAME:
            self._left, self._since = self._gate.body_seconds, 0
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._left):
                return await self._receive()
        except TimeoutError as error:
            seconds = self._gate.body_seconds
            text = f"The body did not come within {seconds:g} s."
            if self._is_upload:
                text = f"Less than {LEAST_CAME >> 10} KiB of the file came in {seconds:g} s."
            headers = {"connection": "close"}
            raise ApiError(408, text, "request_timeout", headers=headers) from error
        finally:
            self._left -= time.monotonic() - began

    def hold(self, size: int) -> None:
        """Count bytes that the request holds until it is answered, also those of downloads."""
        self._gate.hold(size, self._key)
        self._held += size

    def release(self) -> None:
        """Say that nothing is held any more."""
        self._gate.release(self._held, self._key)
        self._held = 0

    def _too_large(self) -> ApiError:
        most = self._gate.most_bytes(self._is_upload)
        return ApiError(
            413,
            f"The body has more than {most} bytes: send fewer images at a time, or addresses.",
            "request_too_large",
            headers={"connection": "close"},
        )


class _Answer:
    """Sends an answer, with the headers that all answers have.

    A long answer ends with `finish`, which waits until its client has read next to all of it.
    """

    def __init__(self, send: Send, headers: dict[str, str]):
        self._send, self._headers = send, headers
        self.status: int | None = None
        self._is_unfinished = False

    async def finish(self) -> None:
        """End the answer, once it is read but for what the system holds."""
        if self._is_unfinished:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.setdefault("x-content-type-options", "nosniff")
            for name, value in self._headers.items():
                headers[name] = value
        elif not message.get("more_body", False) and len(message.get("body", b"")) > TAIL:
            self._is_unfinished = True
            message = {**message, "more_body": True}
        await self._send(message)
