"""Bodies that are too large, too slow or too many, and servers that have too much to do."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import requests
from openai import OpenAI

from jobs.serve.engine.admission import Admission
from jobs.serve.engine.engine import Labelled, Overloaded
from jobs.serve.protocol import error_handlers
from jobs.serve.settings.settings import ApiSettings
from tests.support.logs import listen
from tests.support.serving import MODEL, data_uri, serving


class Standing:
    """An engine that answers what it is told, after `seconds`."""

    model: str = MODEL
    labels: Sequence[str] = ("", "cat")

    def __init__(self, answer: Labelled | Exception, seconds: float = 0.0):
        self.answer, self.seconds = answer, seconds
        self.admission = Admission(4)

    def expect(self) -> Callable[[], None]:
        return self.admission.expect()

    async def detect(self, encoded: bytes) -> Labelled:
        (answer,) = await self.detect_all([encoded])
        return answer

    async def detect_all(
        self, images: Sequence[bytes], pixels: Sequence[int] = ()
    ) -> list[Labelled]:
        await asyncio.sleep(self.seconds)
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.admission.expected == 0, "a request whose images are known has left its place"
        return [self.answer] * len(images)


CAT = Labelled("ok", None, 8, 6, ["cat"], [0.5], [(1.0, 2.0, 3.0, 4.0)])


def post(address: str, **options: Any) -> requests.Response:
    return requests.post(f"{address}/v1/detections", timeout=20, **options)


def body_of(*images: str) -> dict[str, Any]:
    return {"model": MODEL, "images": images or [data_uri(b"x")]}


def exchange(address: str, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Send pieces of a request; return the answer, until the server closes or 10 s."""
    host = urlsplit(address)
    with socket.create_connection((host.hostname, host.port), timeout=10) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        except OSError:
            pass  # the server has answered, and reads no more
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.rstrip().endswith(b"}"):
            more = connection.recv(65536)
            if not more:
                break
            answer += more
        return answer


HEAD = b"POST /v1/detections HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def test_a_body_that_is_announced_as_too_large_is_not_read() -> None:
    with serving(ApiSettings(max_body_bytes=1000), Standing(CAT)) as address:
        answer = exchange(address, HEAD + b"Content-Length: 1001\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413") and b'"request_too_large"' in answer
        client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIStatusError) as raised:
            client.post("/detections", body=body_of("x" * 1000), cast_to=object)
        assert raised.value.status_code == 413


def test_a_body_that_becomes_too_large_is_refused() -> None:
    with serving(ApiSettings(max_body_bytes=1000), Standing(CAT)) as address:
        chunk = b"200\r\n" + b"x" * 0x200 + b"\r\n"
        answer = exchange(address, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 4)
        assert answer.startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_given_up() -> None:
    with serving(ApiSettings(body_seconds=0.5), Standing(CAT)) as address:
        began = time.monotonic()
        answer = exchange(address, HEAD + b"Content-Length: 100\r\n\r\n", b"{", b'"', pause=0.1)
        assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - began < 3


def test_what_all_requests_hold_is_bounded_and_given_back() -> None:
    settings = ApiSettings(held_bytes=100_000)
    image = data_uri(b"x" * 40_000)  # 53,000 characters
    with serving(settings, Standing(CAT, 0.5)) as address, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(address, json=body_of(image)), range(4)))
        codes = sorted(answer.status_code for answer in answers)
        assert codes[0] == 200 and codes[-1] == 503
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "overloaded"
        assert post(address, json=body_of(image)).status_code == 200


def test_a_busy_server_answers_at_the_head() -> None:
    """Each request whose body still comes has a place, until its client leaves."""
    head, busy = HEAD + b"Content-Length: 100\r\n\r\n", b"HTTP/1.1 503"
    with serving(ApiSettings(), Standing(CAT)) as address:
        host = urlsplit(address)
        with ExitStack() as stack:
            for _ in range(4):
                target = (host.hostname, host.port)
                connection = stack.enter_context(socket.create_connection(target))
                connection.sendall(head)
            began = time.monotonic()
            answer = exchange(address, head)
            assert answer.startswith(busy) and b'"overloaded"' in answer
            assert b"retry-after" in answer and time.monotonic() - began < 1
            assert requests.get(f"{address}/v1/models").status_code == 200
        until = time.monotonic() + 10
        while (status := post(address, json=body_of()).status_code) == 503:
            assert time.monotonic() < until
        assert status == 200
        metrics = requests.get(f"{address}/metrics").text
    assert 'route="/v1/detections",status="503"' in metrics


def test_a_busy_engine_is_503_at_once() -> None:
    with serving(ApiSettings(), Standing(Overloaded("full"))) as address:
        began = time.monotonic()
        answer = post(address, json=body_of())
        assert answer.status_code == 503 and time.monotonic() - began < 1
        assert answer.json()["error"]["type"] == "server_error" and answer.headers["retry-after"]
        assert requests.get(f"{address}/health/ready").status_code == 200


def test_a_mistake_of_the_server_says_nothing_of_its_inside(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen(error_handlers.__name__, caplog, monkeypatch)
    secret = "s3://me:hunter2@bucket/a?X-Amz-Signature=0123456789abcdef"
    with serving(ApiSettings(), Standing(ValueError(f"failed at {secret}"))) as address:
        answer = post(address, json=body_of())
        assert answer.status_code == 500 and answer.headers["x-request-id"].startswith("req_")
        assert "failed at" not in answer.text and answer.json()["error"]["code"] == "internal_error"
        ready = requests.get(f"{address}/health/ready")
        assert ready.status_code == 503 and "hunter2" not in ready.text
    assert "failed at" in caplog.text
    assert "0123456789abcdef" not in caplog.text


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"{" * 100_000, b'{"model": 1, "images": 2}',
     b'{"model": "shapes-tiny", "images": []}', b'{"model": "shapes-tiny", "images": [""]}',
     b'{"model": "shapes-tiny", "images": ["x"], "threshold": NaN}',
     b'{"model": "\\ud800", "images": ["x"]}', b'{"model": "' + b"x" * 10_000 + b'"}'],
)  # fmt: skip
def test_a_bad_body_is_400_with_a_short_reason(endpoint: str, body: bytes) -> None:
    for path in ("/v1/detections", "/v1/chat/completions"):
        headers = {"content-type": "application/json"}
        answer = requests.post(endpoint + path, data=body, headers=headers, timeout=10)
        assert answer.status_code == 400, answer.text
        assert 0 < len(answer.json()["error"]["message"]) < 500


@pytest.mark.parametrize(
    "body",
    [b"", b"--x", b"--x\r\n\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--\r\n"],
)
def test_a_broken_form_is_400(endpoint: str, body: bytes) -> None:
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data"):
        answer = post(endpoint, data=body, headers={"content-type": kind})
        assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_wrong_methods_and_paths(endpoint: str) -> None:
    answer = requests.get(f"{endpoint}/v1/detections")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    answer = requests.get(f"{endpoint}/v1/%0d%0aevil/../x")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_url"


def test_a_client_that_leaves_costs_nothing() -> None:
    with serving(ApiSettings(), Standing(CAT, 0.3)) as address:
        body = json.dumps(body_of()).encode()
        head = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode()
        host = urlsplit(address)
        for _ in range(20):
            with socket.create_connection((host.hostname, host.port)) as connection:
                connection.sendall(head + body)
        assert post(address, json=body_of()).status_code == 200
        metrics = requests.get(f"{address}/metrics").text
    assert "detr_batch_serve_requests_in_flight 1.0" in metrics  # the request for the metrics
