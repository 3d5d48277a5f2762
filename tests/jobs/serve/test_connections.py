"""Connections that send nothing, half a head, or read nothing: they hold no place for long."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import pytest
import requests

from jobs.serve.engine.admission import Admission
from jobs.serve.engine.engine import Labelled
from jobs.serve.http import connections
from jobs.serve.settings.settings import ApiSettings
from tests.jobs.serve.test_bodies import CAT, HEAD, Standing, body_of, post
from tests.support.serving import CONNECTIONS, data_uri, serving

HALF = b"GET /health/live HTTP/1.1\r\nHost: a\r\nX-A: "
WHOLE = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An endpoint with short times."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(connections, "KEEP_ALIVE_SECONDS", 0.8)
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.4)
    with serving(ApiSettings(), Standing(CAT, 1.5)) as found:
        yield found


def read_answers(connection: socket.socket, count: int) -> None:
    """Read until there are so many answers, all with status 200."""
    came = b""
    while came.count(b"HTTP/1.1 ") < count or not came.rstrip().endswith((b"}", b"]")):
        more = connection.recv(65536)
        assert more, f"closed after {came[-200:]!r}"
        came += more
    assert came.count(b"HTTP/1.1 200") == count


@contextmanager
def connected(address: str, sent: bytes = b"") -> Iterator[socket.socket]:
    host = urlsplit(address)
    with socket.create_connection((host.hostname, host.port), timeout=10) as connection:
        connection.sendall(sent)
        yield connection


def seconds_open(connection: socket.socket, drip: bytes = b"") -> float:
    """For how long the server leaves it open, with a byte of `drip` in each tenth of a second."""
    began = time.monotonic()
    connection.settimeout(0.1)
    while time.monotonic() - began < 5:
        try:
            if drip:
                connection.sendall(drip[:1])
            if not connection.recv(65536):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - began


@pytest.mark.parametrize("sent", [b"", HALF])
@pytest.mark.parametrize("drip", [b"", b"\n", b"a"])
def test_a_head_that_does_not_come_is_given_up(address: str, sent: bytes, drip: bytes) -> None:
    with connected(address, sent) as connection:
        assert seconds_open(connection, drip) < 2


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
ENDLESS = {
    "field": (HALF, b"a" * 1000),
    "fields": (HALF, b"a\r\nX: " * 200),
    "empty fields": (HALF, b"\r\nX:" * 250),
    "url": (b"GET /", b"a" * 1000),
    "field behind a body": (CHUNKED + b"0\r\nX: ", b"a" * 1000),
    "fields behind a body": (CHUNKED + b"0\r\nX: ", b"a\r\nX: " * 200),
    "extension of a chunk": (CHUNKED + b"1;a=", b"a" * 1000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_given_up_soon(name: str) -> None:
    begin, more = ENDLESS[name]
    most = 20 << 20  # far more than the system holds for a connection
    with serving(ApiSettings(), Standing(CAT)) as address, connected(address, begin) as connection:
        sent = 0
        with suppress(OSError):
            while sent < most:
                connection.sendall(more * 100)
                sent += 100 * len(more)
        assert sent < most
        assert requests.get(f"{address}/health/live", timeout=20).status_code == 200


def test_a_head_may_be_long_and_chunks_small(address: str) -> None:
    fields = {f"x-{n}": "a" * 1000 for n in range(50)}
    assert requests.get(f"{address}/health/live", headers=fields, timeout=20).status_code == 200
    body = json.dumps(body_of(data_uri(b"x" * 100_000))).encode()
    pieces = (body[start : start + 10] for start in range(0, len(body), 10))
    assert requests.post(f"{address}/v1/detections", data=pieces, timeout=20).status_code == 200


@pytest.mark.parametrize("drip", [b"", b"G"])
def test_a_connection_ends_that_asks_nothing_more(address: str, drip: bytes) -> None:
    with connected(address, WHOLE) as connection:
        assert seconds_open(connection, drip) < 2.5


def test_the_rest_of_a_refused_body_does_not_hold_a_connection(address: str) -> None:
    refused = HEAD.replace(b"/v1/detections", b"/nowhere") + b"Content-Length: 1000\r\n\r\n"
    with connected(address, refused) as connection:
        assert seconds_open(connection, b"x") < 2.5


def test_requests_have_their_own_time(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes longer than a head may, and so does a pause between two requests."""
    monkeypatch.setattr(connections, "KEEP_ALIVE_SECONDS", 10)
    body = json.dumps(body_of()).encode()
    request = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with connected(address) as connection:
        for _ in range(2):
            connection.sendall(request)
            read_answers(connection, 1)
            time.sleep(0.5)
    with connected(address, WHOLE * 3) as connection:
        read_answers(connection, 3)


def test_connections_that_wait_make_room() -> None:
    with serving(ApiSettings(), Standing(CAT)) as address, ExitStack() as stack:
        waiting = [
            stack.enter_context(connected(address, HALF if n % 2 else b""))
            for n in range(CONNECTIONS + 20)
        ]
        for _ in range(3):
            assert post(address, json=body_of()).status_code == 200
        waiting[0].settimeout(1)
        assert waiting[0].recv(1) == b"", "the oldest goes first"


def test_requests_beyond_all_places_are_503() -> None:
    engine = Standing(CAT)
    engine.admission = Admission(2 * CONNECTIONS)
    with serving(ApiSettings(), engine) as address, ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connected(address, HEAD + b"Content-Length: 100\r\n\r\n"))
        until = time.monotonic() + 30  # the connections are taken one by one
        while requests.get(f"{address}/health/live").status_code != 503:
            assert time.monotonic() < until


@contextmanager
def asked_for(size: int, more: bytes = b"") -> Iterator[socket.socket]:
    """A connection on which an answer of more than `size` bytes was asked for, and `more` sent."""
    large = Labelled("ok", None, 8, 6, ["x" * size], [0.5], [(1.0, 2.0, 3.0, 4.0)])
    body = json.dumps(body_of()).encode()
    request = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with (
        serving(ApiSettings(), Standing(large)) as address,
        connected(address, request + more) as connection,
    ):
        yield connection


LARGE = 30_000_000  # more than the system holds for a connection


def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.4)
    with asked_for(LARGE) as connection:
        came = len(connection.recv(1))
        time.sleep(1.5)
        with suppress(OSError):
            while more := connection.recv(1 << 20):
                came += len(more)
        assert 0 < came < LARGE


@pytest.mark.parametrize(
    ("at_once", "pause", "seconds"),
    [
        (200_000, 0.02, 60.0),  # so that it takes longer than each of the times
        (20_000, 0.1, 5.0),  # three times what a client must read, until it hurries
    ],
)
def test_a_client_that_reads_slowly_gets_all_of_its_answer(
    at_once: int, pause: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("UNREAD_SECONDS", "KEEP_ALIVE_SECONDS"):
        monkeypatch.setattr(connections, name, 1.0)
    with asked_for(LARGE) as connection:
        came, until = 0, time.monotonic() + seconds
        while came < LARGE:
            is_slow = time.monotonic() < until
            more = connection.recv(at_once if is_slow else 1 << 20)
            assert more, f"closed after {came} of {LARGE} bytes"
            came += len(more)
            time.sleep(pause * is_slow)


def test_the_time_of_the_next_head_begins_when_an_answer_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HEAD_SECONDS", "KEEP_ALIVE_SECONDS"):
        monkeypatch.setattr(connections, name, 0.5)
    with asked_for(LARGE, HALF) as connection:
        came = len(connection.recv(1))
        time.sleep(1.5)  # the answer is on its way, and not read
        while more := connection.recv(1 << 20):  # it ends as the second head does not come
            came += len(more)
        assert came > LARGE
