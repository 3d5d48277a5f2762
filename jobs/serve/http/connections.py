"""Connections of clients that listen to nobody: none holds a place without a request for long.

A connection waits until the head of a request is whole, and again once an answer is sent. It has
a time for that, however it drips, and where all places are taken, the one that has waited longest
goes first. So only requests take places, and what a request may take is bounded elsewhere.
"""

import asyncio
import socket
import time
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0  # from the begin of a connection, or of a head, until the head is whole
KEEP_ALIVE_SECONDS = 75  # from an answer until the next head begins; the rest of a body comes then
# A client must read so many bytes of an answer in so many seconds.
UNREAD_SECONDS, LEAST_READ = 60.0, 64 << 10
# Bytes of a head, also of what follows a body in chunks: nothing else bounds them. Each field
# counts as 32 more, as HTTP/2 has it.
LARGEST_HEAD, PER_FIELD = 64 << 10, 32


class TimedProtocol(HttpToolsProtocol):
    """The protocol of uvicorn, with times."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._waits_since: float | None = None  # None: a request or an answer is under way
        self._wait_after: float | None = None  # seconds to wait for, once the answer is sent
        self._closing: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._head = 0  # bytes of the fields of this request
        self._untold = 0  # bytes that came since the parser last told of any

    def data_received(self, data: bytes) -> None:
        self._untold += len(data)
        super().data_received(data)
        if self._untold > LARGEST_HEAD:  # a field or the like that does not end
            self._close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing is paused while anything is unsent
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # else the system takes megabytes at a time
            option = socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT
            with suppress(OSError):  # the client has gone
                transport.get_extra_info("socket").setsockopt(*option, LEAST_READ)
        self._wait(HEAD_SECONDS)
        self._make_room()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = self._untold = 0
        if self._waits_since is not None or self._wait_after is not None:
            self._wait(HEAD_SECONDS)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + PER_FIELD)
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._untold = 0
        super().on_body(body)

    def on_chunk_header(self) -> None:
        """Called by the parser."""
        self._untold = 0

    def _count(self, size: int) -> None:
        """Count bytes of a head. What is raised ends the connection with status 400."""
        self._untold = 0
        self._head += size
        if self._head > LARGEST_HEAD:
            raise ValueError(f"the head has more than {LARGEST_HEAD} bytes")

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # uvicorn's time begins before the answer is sent
        if self.cycle.response_complete:  # else the next request of this connection has begun
            self._wait(KEEP_ALIVE_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread()
        if self._wait_after is not None:
            self._wait(self._wait_after)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_unread()
        super().connection_lost(exc)

    def _wait(self, seconds: float) -> None:
        """Wait for a head that has so many seconds, as soon as nothing is unsent."""
        self._stop_waiting()
        if self._unsent():
            self._wait_after = seconds
            return
        self._waits_since = time.monotonic()
        self._closing = self.loop.call_later(seconds, self._close)

    def _unsent(self) -> int:
        """The bytes of answers that its client has not taken yet."""
        return int(self.transport.get_write_buffer_size())

    def _watch_reading(self) -> None:
        self._unread = self.loop.call_later(UNREAD_SECONDS, self._check_reading, self._unsent())

    def _check_reading(self, unsent: int) -> None:
        """Give an answer up of which too little was read since it had so many `unsent` bytes."""
        if unsent - self._unsent() < LEAST_READ:
            self.transport.abort()
        else:
            self._watch_reading()

    def _stop_waiting(self) -> None:
        self._waits_since = self._wait_after = None
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _close(self) -> None:
        """Close the connection, whether or not its client reads what is still to be sent."""
        self._stop_waiting()
        self.connections.discard(self)  # the place is free now, not when the loop says that it is
        self.transport.abort()

    def _make_room(self) -> None:
        """Close the connection that has waited longest, if all places are taken."""
        if self.limit_concurrency is None or len(self.connections) < self.limit_concurrency:
            return
        others = (one for one in self.connections if isinstance(one, TimedProtocol))
        waiting = [
            (one._waits_since, id(one), one)
            for one in others
            if one is not self and one._waits_since is not None
        ]
        if waiting:
            min(waiting)[-1]._close()
