"""Bodies of requests: what is refused costs little, whatever its form, and shows no secret."""

import json
import time
from typing import Any

import pytest

from jobs.serve.http.detections import DetectionsRequest
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import LONGEST_VALUE, MOST_VALUES, parse_body, shown
from jobs.serve.protocol.response_format import SchemaFormat, check_format, shaped

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


NO_SCHEMAS = (
    {"anyOf": [{"$ref": "#"}] * 500},  # 500 alternatives on each of six levels
    *({name: 5} for name in ("allOf", "anyOf", "oneOf", "enum", "required", "properties")),
    {"oneOf": {"a": 1}},
    {"required": [{}]},
    {"properties": [1]},
    {"$ref": "#/" + "http://a@" * 10_000},
)


@pytest.mark.parametrize("schema", NO_SCHEMAS)
def test_what_is_no_schema_is_refused_at_once(schema: dict[str, Any]) -> None:
    began = time.process_time()
    with pytest.raises(ApiError, match=r"cannot be met: answer is described by") as raised:
        check_format(format_of(schema))
    assert time.process_time() - began < SECONDS
    assert raised.value.status == 400 and len(raised.value.message) < 300


def test_alternatives_of_a_whole_answer_are_tried() -> None:
    schema = {
        "properties": {
            "images": {
                "items": {
                    "properties": {"error": {"anyOf": [{"type": "null"}, {"type": "object"}]}}
                }
            }
        }
    }
    error = {"code": "undecodable", "message": "no known image format"}
    answer = {"images": [{"index": 0, "error": None}, {"index": 1, "error": error}] * 500}
    assert shaped(answer, format_of(schema)) == {
        "images": [{"error": None}, {"error": error}] * 500
    }


def test_a_required_property_is_demanded_without_a_list_of_properties() -> None:
    with pytest.raises(ApiError, match="has no `sizes`: it has images"):
        check_format(format_of({"required": ["sizes"]}))


def format_of(schema: dict[str, Any]) -> SchemaFormat:
    document = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    return SchemaFormat.model_validate(document)
