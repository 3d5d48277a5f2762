"""Forms: their charset, their fields, and how fast and how many of them come."""

import asyncio
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from jobs.serve.batches.store import Store
from jobs.serve.engine.engine import Labelled
from jobs.serve.http import middleware
from jobs.serve.http.forms import LONGEST_FIELD
from jobs.serve.http.keys import add_key
from jobs.serve.protocol import error_handlers
from jobs.serve.settings.settings import ApiSettings
from tests.jobs.serve.test_bodies import CAT, Standing, body_of, exchange
from tests.support.logs import listen
from tests.support.serving import MODEL, data_uri, serving

ROUTES = ("/v1/files", "/v1/detections")
PURPOSE = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n'
END = b"--x--\r\n"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with serving(ApiSettings(), Standing(CAT), batches=Store(str(tmp_path))) as found:
        yield found


def post(address: str, path: str, body: bytes, more: str = "") -> requests.Response:
    headers = {"content-type": f"multipart/form-data; boundary=x{more}"}
    return requests.post(address + path, data=body, headers=headers, timeout=20)


def head_of(path: str, more: str = "", size: int = 1_000_000) -> bytes:
    """The head of a form that is still to come. `more` is of its content type, or headers."""
    kind = f"multipart/form-data; boundary=x{more}"
    lines = f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {size}", f"Content-Type: {kind}"
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("charset", ["punycode", "idna", "utf-7", "undefined", "zip", "latin-1"])
def test_a_form_of_another_charset_is_refused_at_its_head(
    address: str, path: str, charset: str
) -> None:
    answer = exchange(address, head_of(path, f"; charset={charset}"))
    assert answer.startswith(b"HTTP/1.1 415") and b'"unsupported_charset"' in answer


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf8"', "us-ascii"])
def test_a_form_may_name_utf_8(address: str, charset: str) -> None:
    name = "a.jsonl" if "ascii" in charset else "é.jsonl"
    body = PURPOSE + FILE % (name.encode(), b"{}") + END
    answer = post(address, "/v1/files", body, f"; charset={charset}")
    assert answer.status_code == 200 and answer.json()["filename"] == name


def test_charsets_of_parts_and_fields_change_nothing(address: str) -> None:
    named = PURPOSE.replace(b"\r\n\r\n", b"\r\nContent-Type: text/plain; charset=punycode\r\n\r\n")
    extended = FILE.replace(b'"%s"', b"\"%s\"; filename*=punycode''b-a") % (b"a.jsonl", b"{}")
    answer = post(address, "/v1/files", named + extended + END)
    assert answer.status_code == 200 and answer.json()["filename"] == "a.jsonl"
    field = PURPOSE.replace(b"purpose", b"_charset_").replace(b"batch", b"punycode")
    answer = post(address, "/v1/files", PURPOSE + field + FILE % (b"a", b"{}") + END)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "_charset_"


@pytest.mark.parametrize(
    "name", [b"+2AA-.jsonl", b"\xed\xa0\x80", b"\xff", b"\x00\r", b"=?x?q?=d8?="]
)
def test_a_name_of_any_bytes_is_a_file_or_an_error_of_the_client(address: str, name: bytes) -> None:
    answer = post(address, "/v1/files", PURPOSE + FILE % (name, b"{}") + END)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        found = requests.get(f"{address}/v1/files/{answer.json()['id']}", timeout=20)
        assert found.json() == answer.json()


@pytest.mark.parametrize("path", ROUTES)
def test_fields_are_short(address: str, path: str) -> None:
    body = PURPOSE.replace(b"batch", b"b" * (LONGEST_FIELD + 1)) + END
    answer = post(address, path, body)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_form"
    many = PURPOSE * 65 + END
    assert post(address, path, many).json()["error"]["code"] == "invalid_form"


def test_an_upload_that_still_comes_holds_little_memory(address: str) -> None:
    field = PURPOSE.replace(b"batch", b"b" * LONGEST_FIELD)
    file = FILE.removesuffix(b"\r\n") % (b"a.jsonl", b"x" * 1_040_000)
    with ExitStack() as stack:
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        for _ in range(10):
            sent = head_of("/v1/files") + 15 * field + file
            stack.enter_context(opened(address, sent))
        del sent
        until = time.monotonic() + 20  # they are taken one by one, and read
        while "requests_in_flight 11.0" not in requests.get(f"{address}/metrics", timeout=20).text:
            assert time.monotonic() < until
        time.sleep(1)
        while tracemalloc.get_traced_memory()[0] > 9_000_000:  # pieces that came last, too
            assert time.monotonic() < until, "they hold their files"
            time.sleep(0.1)


def test_what_is_no_form_with_files_is_not_read(address: str) -> None:
    for kind in (b"application/x-www-form-urlencoded", b"multipart/form-datax", b"text/plain"):
        head = head_of("/v1/files").replace(b"multipart/form-data; boundary=x", kind)
        answer = exchange(address, head)
        assert answer.startswith(b"HTTP/1.1 400") and b'"file"' in answer


def test_an_upload_that_comes_too_slowly_is_given_up(tmp_path: Path) -> None:
    settings = ApiSettings(body_seconds=0.5)
    with serving(settings, Standing(CAT), batches=Store(str(tmp_path))) as address:
        began = time.monotonic()
        answer = exchange(address, head_of("/v1/files"), PURPOSE, b"-", b"-", pause=0.1)
        assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - began < 5


def test_an_upload_may_take_longer_than_the_body_of_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "LEAST_CAME", 10)
    body = PURPOSE + FILE % (b"a.jsonl", b"x" * 1000) + END
    pieces = [body[start : start + 100] for start in range(0, len(body), 100)]
    settings = ApiSettings(body_seconds=2.0)
    with serving(settings, Standing(CAT), batches=Store(str(tmp_path))) as address:
        began = time.monotonic()
        head = head_of("/v1/files", size=len(body))
        answer = exchange(address, head, *pieces, pause=0.3)
        assert answer.startswith(b"HTTP/1.1 200") and time.monotonic() - began > 2.0


@pytest.mark.parametrize("has_keys", [True, False])
def test_a_client_has_only_some_uploads_at_a_time(tmp_path: Path, has_keys: bool) -> None:
    ours = theirs = ""
    settings = ApiSettings(uploads_at_once=3)
    if has_keys:
        keys = str(tmp_path / "keys.json")
        ours, theirs = (f"Authorization: Bearer {add_key(keys, name)[1]}" for name in "ab")
        settings = ApiSettings(uploads_at_once=3, keys=keys)
    head, other = (head_of("/v1/files", f"\r\n{key or 'X: y'}") for key in (ours, theirs))
    long = PURPOSE.replace(b"batch", b"b" * (LONGEST_FIELD + 1))
    store = Store(str(tmp_path / "batches"))
    with serving(settings, Standing(CAT), batches=store) as address:
        with ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(opened(address, head))
            answer = wait_for(address, head, b"HTTP/1.1 429")
            assert b'"too_many_at_once"' in answer and b"retry-after: 1" in answer
            if has_keys:
                wait_for(address, other + long, b"HTTP/1.1 400")
        wait_for(address, head + long, b"HTTP/1.1 400")  # their places are free again


def test_a_key_has_only_some_requests_at_a_time(tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.json")
    ours, theirs = (add_key(keys, name)[1] for name in "ab")
    settings = ApiSettings(requests_at_once=2, keys=keys)
    with serving(settings, Standing(CAT)) as address, ExitStack() as stack:
        slow = head_of("/v1/detections", f"\r\nAuthorization: Bearer {ours}")
        for _ in range(2):
            stack.enter_context(opened(address, slow))
        wait_for(address, slow, b"HTTP/1.1 429")
        for key, status in ((ours, 429), (theirs, 200)):
            headers = {"authorization": f"Bearer {key}"}
            answer = requests.get(f"{address}/v1/models", headers=headers, timeout=20)
            assert answer.status_code == status, answer.text
        assert requests.get(f"{address}/health/live", timeout=20).status_code == 200


def test_a_key_has_only_some_bodies_that_still_come(tmp_path: Path) -> None:
    """And those whose images are detected in do not count."""
    keys = str(tmp_path / "keys.json")
    ours, theirs = (add_key(keys, name)[1] for name in "ab")
    settings = ApiSettings(bodies_at_once=2, keys=keys)
    with serving(settings, Standing(CAT, 0.5)) as address:
        url = f"{address}/v1/detections"

        def ask(key: str, model: str = MODEL) -> int:
            headers, body = {"authorization": f"Bearer {key}"}, {**body_of(), "model": model}
            return requests.post(url, json=body, headers=headers, timeout=20).status_code

        for _ in range(3):
            assert ask(ours) == 200
        slow = head_of("/v1/detections", f"\r\nAuthorization: Bearer {ours}")
        with ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(opened(address, slow))
            wait_for(address, slow, b"HTTP/1.1 429")
            assert (ask(ours, "none"), ask(theirs, "none")) == (429, 404)


class Busy(Standing):
    """An engine whose first answer waits until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__(CAT)
        self.has_begun, self.go_on = threading.Event(), threading.Event()

    async def detect_all(
        self, images: Sequence[bytes], pixels: Sequence[int] = ()
    ) -> list[Labelled]:
        is_first = not self.has_begun.is_set()
        self.has_begun.set()
        while is_first and not self.go_on.is_set():
            await asyncio.sleep(0.01)
        return [CAT] * len(images)


def test_a_key_has_only_some_images_at_a_time(tmp_path: Path) -> None:
    """One request may have any number, so that none is refused for ever."""
    keys = str(tmp_path / "keys.json")
    ours, theirs = (add_key(keys, name)[1] for name in "ab")
    engine, settings = Busy(), ApiSettings(images_at_once=1, keys=keys)
    with serving(settings, engine) as address, ThreadPoolExecutor(1) as pool:

        def ask(key: str) -> int:
            headers, body = {"authorization": f"Bearer {key}"}, body_of(*[data_uri(b"x")] * 2)
            url = f"{address}/v1/detections"
            return requests.post(url, json=body, headers=headers, timeout=20).status_code

        first = pool.submit(ask, ours)
        try:
            assert engine.has_begun.wait(20)
            assert (ask(ours), ask(theirs)) == (429, 200)
        finally:
            engine.go_on.set()
        assert (first.result(), ask(ours)) == (200, 200)


def test_a_key_holds_only_half_of_what_may_be_held(tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.json")
    ours, theirs = (add_key(keys, name)[1] for name in "ab")
    engine, settings = Busy(), ApiSettings(held_bytes=200_000, keys=keys)
    engine.go_on.set()
    with serving(settings, engine) as address, ExitStack() as stack:

        def ask(key: str) -> int:
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            body = json.dumps(body_of()).encode() + b" " * 60_000
            url = f"{address}/v1/detections"
            return requests.post(url, data=body, headers=headers, timeout=20).status_code

        assert ask(ours) == 200
        head = head_of("/v1/detections", f"\r\nAuthorization: Bearer {ours}", 90_000)
        head = head.replace(b"multipart/form-data; boundary=x", b"application/json")
        stack.enter_context(opened(address, head + b"x" * 60_000))
        until = time.monotonic() + 20
        while (code := ask(ours)) == 200 and time.monotonic() < until:
            time.sleep(0.1)
        assert (code, ask(theirs)) == (429, 200)


def test_a_request_is_under_way_until_its_answer_is_read(tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.json")
    key = add_key(keys, "a")[1]
    large = replace(CAT, labels=["x" * 30_000_000])  # more than the system holds
    settings = ApiSettings(requests_at_once=1, keys=keys)
    ask = f"GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    with serving(settings, Standing(large)) as address:
        body = json.dumps(body_of()).encode()
        kind = f"\r\nAuthorization: Bearer {key}"
        head = head_of("/v1/detections", kind, len(body))
        head = head.replace(b"multipart/form-data; boundary=x", b"application/json")
        with opened(address, head + body) as connection:
            assert connection.recv(1)
            wait_for(address, ask, b"HTTP/1.1 429")
            came = 1
            while came < 30_000_000:
                came += len(connection.recv(1 << 20))
            wait_for(address, ask, b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ROUTES)
def test_a_client_that_leaves_in_its_body_leaves_no_error(
    address: str, path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen(error_handlers.__name__, caplog, monkeypatch)
    listen("uvicorn.error", caplog, monkeypatch)
    with opened(address, head_of(path) + PURPOSE):
        pass
    line = f'method="POST",route="{path}",status="499"'
    until = time.monotonic() + 20
    while line not in requests.get(f"{address}/metrics", timeout=20).text:
        assert time.monotonic() < until
    assert not caplog.records


def opened(address: str, sent: bytes) -> socket.socket:
    host = urlsplit(address)
    connection = socket.create_connection((host.hostname, host.port), timeout=10)
    connection.sendall(sent)
    return connection


def wait_for(address: str, sent: bytes, status: bytes) -> bytes:
    """Ask until the answer has this status: connections are taken and end one by one."""
    until = time.monotonic() + 20
    while True:
        with opened(address, sent) as connection:
            connection.settimeout(1)
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                answer = b""
        if answer.startswith(status):
            return answer
        assert time.monotonic() < until, answer
