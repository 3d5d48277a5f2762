"""A proxy before a real S3 server that fails some requests in the ways that stores fail."""

import asyncio
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import ClientSession, TCPConnector, web
from yarl import URL

from tests.chaos.stale_listing import StaleListing

KINDS = ("slow_down", "error", "reset", "lost_answer", "cut", "slow", "stall")
STALL_SECONDS = 40.0  # longer than clients wait
CHANGES = ("PUT", "POST", "DELETE")
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


class FaultyStore:
    """Forwards to `target`; a share `rate` of all requests fails in one of `kinds`."""

    def __init__(self, target: str, seed: int = 0):
        self.target = target
        self.random = random.Random(seed)
        self.rate = 0.0
        self.kinds: tuple[str, ...] = KINDS
        self.gone = False  # no request is answered any more
        self.forbidding = False  # writes are denied
        self.hold_at = ""  # a PUT whose path ends so, and all after it, wait for `release`
        self.held, self.release = threading.Event(), threading.Event()
        self.lose_at = ""  # the first PUT whose path ends so takes effect, and nobody hears of it
        self.changes = 0  # PUT, POST and DELETE so far, but for those of the lock
        self.deed_at, self.deed = 0, ""  # "hold", "lose" or "delay" the change of that number
        self.done = threading.Event()  # the deed
        self.arrived = threading.Event()  # what was delayed
        self.broken = ""  # requests whose path this pattern finds fail for ever
        self.stale = StaleListing()
        self.injected: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []  # method and path of each
        self.url = ""

    @contextmanager
    def running(self) -> Iterator["FaultyStore"]:
        """Serve on a free port of loopback, from a thread."""
        loop = asyncio.new_event_loop()
        started = threading.Event()
        thread = threading.Thread(target=self._serve, args=(loop, started), daemon=True)
        thread.start()
        started.wait(30)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(30)

    def _serve(self, loop: asyncio.AbstractEventLoop, started: threading.Event) -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(self._start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(self.runner.cleanup())
        loop.run_until_complete(self.session.close())

    async def _start(self) -> None:
        self.session = ClientSession(connector=TCPConnector(limit=0), auto_decompress=False)
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self.runner = web.AppRunner(application, access_log=None)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answer_or_fail(request)
        except ConnectionResetError:  # the client was killed, or has given up
            return self._reset(request)

    async def _answer_or_fail(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.method, request.path))
        if self.gone:
            return self._reset(request)
        if self.forbidding and request.method in ("PUT", "POST"):
            return _answer(403, "AccessDenied", "no more writes")
        self._count(request)
        await self._hold(request)
        kind = self._kind_of_fault(request)
        if kind == "delay":
            self.late = asyncio.ensure_future(self._forward_at_release(request, body))
            return self._reset(request)
        if self.lose_at and request.method == "PUT" and request.path.endswith(self.lose_at):
            kind, self.lose_at = "lost_answer", ""
        if kind:
            self.injected[kind] += 1
        if kind == "slow_down":
            return _answer(503, "SlowDown", "reduce your request rate")
        if kind == "error":
            return _answer(500, "InternalError", "we encountered an internal error")
        if kind == "stall":
            await asyncio.sleep(STALL_SECONDS)
        if kind in ("reset", "stall"):
            return self._reset(request)
        async with self._forward(request, body) as answer:
            content = await answer.read()
            if kind == "lost_answer":
                return self._reset(request)
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_HEADERS}
            length = answer.headers.get("Content-Length", str(len(content)))
            if "list-type" in request.query and answer.status == 200:
                content = self.stale.listing(content, request.query.get("prefix", ""))
                length = str(len(content))
            else:
                self.stale.note(request.method, request.path, body)
            response = web.StreamResponse(status=answer.status, headers=kept)
            response.headers["Content-Length"] = length
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        if kind == "cut" and len(content) > 1:
            await response.write(content[: len(content) // 2])
            return self._reset(request)
        if kind == "slow":
            step = max(1, len(content) // 10)
            for start in range(0, len(content), step):
                await response.write(content[start : start + step])
                await asyncio.sleep(0.1)
        else:
            await response.write(content)
        await response.write_eof()
        return response

    def _forward(self, request: web.Request, body: bytes) -> Any:
        """The answer of the store to a request."""
        return self.session.request(
            request.method,
            URL(self.target + request.raw_path, encoded=True),
            headers={k: v for k, v in request.headers.items() if k.lower() not in HOP_HEADERS},
            data=body if body or request.method in ("PUT", "POST") else None,
            allow_redirects=False,
        )

    async def _forward_at_release(self, request: web.Request, body: bytes) -> None:
        """Let a request arrive that its sender has given up."""
        while not self.release.is_set():
            await asyncio.sleep(0.05)
        async with self._forward(request, body) as answer:
            await answer.read()
        self.arrived.set()

    def _count(self, request: web.Request) -> None:
        """Count a change; from the one that is to be held on, nothing passes any more."""
        if request.method not in CHANGES or request.path.endswith("lock.json"):
            return
        self.changes += 1
        if self.deed == "hold" and self.changes == self.deed_at:
            self.held.set()
            self.done.set()

    def _kind_of_fault(self, request: web.Request) -> str | None:
        """How a request fails; None for one that does not."""
        if self.broken and re.search(self.broken, request.path):
            self.done.set()
            return "error"
        counts = request.method in CHANGES and not request.path.endswith("lock.json")
        if counts and self.deed in ("lose", "delay") and self.changes == self.deed_at:
            self.done.set()
            return {"lose": "lost_answer", "delay": "delay"}[self.deed]
        return self.random.choice(self.kinds) if self.random.random() < self.rate else None

    async def _hold(self, request: web.Request) -> None:
        """Let nothing through any more from a certain request on, until it is released."""
        if self.hold_at and request.method == "PUT" and request.path.endswith(self.hold_at):
            self.held.set()
        while self.held.is_set() and not self.release.is_set():
            await asyncio.sleep(0.05)

    def _reset(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()


def _answer(status: int, code: str, message: str) -> web.Response:
    """An error as S3 spells it."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")
