"""Bodies of requests: what is refused costs little, whatever its form, and shows no secret."""

import json
import time

import pytest

from jobs.serve.http.detections import DetectionsRequest
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import LONGEST_VALUE, MOST_VALUES, parse_body, shown

# Of a CPU, for each of these. Each took 8 to 60 while whole bodies were searched for secrets.
SECONDS = 6.0
LARGE = {
    "spaces": (b" " * 30_000_000, "invalid_json"),
    "digits": (b'{"threshold":' + b"9" * 10_000_000 + b"}", "invalid_json"),
    "names": (
        b"{" + b",".join(b'"k%d":1' % n for n in range(1_000_000)) + b"}",
        "too_many_values",
    ),
    "numbers": (json.dumps({"images": [1] * 2_000_000}).encode(), "too_many_values"),
    "text": (
        json.dumps({"model": "m", "images": ["a"], "threshold": "9" * 20_000_000}).encode(),
        "invalid_value",
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_body_is_refused_in_seconds(name: str) -> None:
    body, code = LARGE[name]
    began = time.process_time()
    with pytest.raises(ApiError) as raised:
        parse_body(DetectionsRequest, body)
    assert time.process_time() - began < SECONDS
    assert (raised.value.status, raised.value.code) == (400, code)
    assert len(raised.value.message) < 300


def test_all_values_of_a_body_count() -> None:
    images = [f"https://example.com/{n}.jpg" for n in range(MOST_VALUES - 2)]
    body = {"model": "m", "images": images}
    assert parse_body(DetectionsRequest, json.dumps(body).encode()).model == "m"
    with pytest.raises(ApiError, match=r"more than 10,000 values"):
        parse_body(DetectionsRequest, json.dumps({**body, "threshold": 0.5}).encode())


def test_a_value_is_shown_short_and_without_secrets() -> None:
    address = "https://example.com/" + "a" * 60 + "?X-Amz-Signature=0123456789abcdef"
    assert "0123456" not in shown(address) and shown(address).startswith("https://example.com/aaa")
    assert len(shown("b" * 10_000)) == LONGEST_VALUE + len("...")
