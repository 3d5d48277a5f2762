"""Bodies of requests: what is refused costs little, whatever its form, and shows no secret."""

import json
import time
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from jobs.serve.http.chat import ChatRequest
from jobs.serve.http.detections import DetectionsRequest
from jobs.serve.protocol import counting
from jobs.serve.protocol.counting import has_more_values
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import LONGEST_VALUE, MOST_VALUES, parse_body, shown
from jobs.serve.protocol.response_format import SchemaFormat, check_format, shaped

# Of a CPU, for each of these. Each took 8 to 60 while whole bodies were searched for secrets.
SECONDS = 6.0
SECONDS_OF_SCHEMA = 2.0  # of a CPU, on a busy machine; the longest took minutes
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


MOST_SECONDS, MOST_MEMORY = 3.0, 400 << 20  # beside 63 MiB of each of these
MANY: dict[str, Callable[[], bytes]] = {
    "lists": lambda: b'{"images":[' + b"[]," * (21 << 20) + b"0]}",
    "brackets": lambda: b"[" * (63 << 20),
    "documents": lambda: b'{"images":[' + b'{"":0},' * (9 << 20) + b"0]}",
    "behind a text": lambda: (
        b'{"a":"' + b"\\\\," * (11 << 20) + b'","b":[' + b"0," * (15 << 20) + b"0]}"
    ),
}


@pytest.mark.parametrize("name", MANY)
def test_values_are_counted_before_they_are_made(name: str) -> None:
    body = MANY[name]()
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ApiError) as raised:
            parse_body(DetectionsRequest, body)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < MOST_SECONDS and most < MOST_MEMORY
    assert raised.value.code == "too_many_values"


def test_signs_within_texts_are_no_values() -> None:
    text = '\\",[{\\\\' * (MOST_VALUES + 1)
    body = json.dumps({"model": text, "images": [text, text]}).encode()
    for start in range(40):  # wherever a piece ends
        assert not has_more_values(b" " * start + body, 2)
    assert parse_body(DetectionsRequest, body).images == [text, text]


def test_documents_are_counted_as_they_are_parsed(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(seed)
    for _ in range(300):
        document = any_document(random, 4)
        text = json.dumps(document, ensure_ascii=random.random() < 0.5).encode()
        values = values_of(document)
        monkeypatch.setattr(counting, "PIECE", random.randint(1, 40))
        assert not has_more_values(text, values)
        if values > 3:
            assert has_more_values(text, (values - 2) // 2)


def any_document(random: Random, depth: int) -> Any:
    if not depth or random.random() < 0.3:
        return "".join(random.choice('",[{}]\\\\:aé\n') for _ in range(random.randint(0, 9)))
    parts = [any_document(random, depth - 1) for _ in range(random.randint(0, 5))]
    return parts if random.random() < 0.5 else {f'{n}\\"[,': part for n, part in enumerate(parts)}


def values_of(document: Any) -> int:
    """All but the document itself."""
    if not isinstance(document, dict | list):
        return 0
    parts = document.values() if isinstance(document, dict) else document
    return len(document) + sum(map(values_of, parts))


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


LONG = "x" * 1_000_000
# What fits no alternative, each of a size that no answer may be measured at again and again.
FAILING: dict[str, dict[str, Any]] = {
    "enum": {"enum": [LONG]},
    "const": {"const": LONG},
    "const of a list": {"const": [0] * 8000},
    "enum of many": {"enum": [f"{n}" for n in range(9000)]},
    "enum of equal hashes": {"enum": [n * ((1 << 61) - 1) for n in range(9000)]},
    "enum of lists": {"enum": [[n] * 10 for n in range(800)]},
    "type": {"type": [LONG] + ["object"] * 9000},
    "required": {"required": [*["label"] * 9000, LONG]},
    "properties": {"properties": {f"{n}": {} for n in range(9000)}, "required": [LONG]},
    "pointer": {"$ref": "#" + "/a" * 500_000},
    "pointer that is none": {"$ref": [LONG] * 9000},
}


@pytest.mark.parametrize("name", FAILING)
def test_alternatives_that_fit_nothing_cost_little(name: str) -> None:
    """They fail at each box of each image."""
    one = {"anyOf": [{"$ref": "#/$defs/one"}] * 10 + [{}]}
    fields = {"properties": {"label": one, "box": one}}
    box = {"anyOf": [{"$ref": "#/$defs/one"}] * 10 + [fields]}
    images = {"items": {"properties": {"detections": {"items": box}}}}
    schema = {"$defs": {"one": FAILING[name]}, "properties": {"images": images}}
    found = {"label": "cat", "score": 0.5, "box": [1.0, 2.0, 3.0, 4.0]}
    answer = {"images": [{"index": 0, "detections": [found] * 100}] * 4}
    began = time.process_time()
    try:
        shaped(answer, format_of(schema))
    except ApiError as error:
        assert len(error.message) < 400
    assert time.process_time() - began < SECONDS_OF_SCHEMA


def test_steps_of_a_request_are_bounded() -> None:
    one: dict[str, Any] = {"anyOf": [{"type": "null"}] * 300 + [{}]}
    schema = {"properties": {"images": {"items": {"properties": {"detections": {"items": one}}}}}}
    answer: dict[str, Any] = {"images": [{"detections": [{}] * 100}] * 16}
    began = time.process_time()
    with pytest.raises(ApiError, match="too many alternatives"):
        shaped(answer, format_of(schema))
    assert time.process_time() - began < SECONDS_OF_SCHEMA


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "y" * 1_000_000}]}]},
        {"model": "m", "messages": [{"role": "user"}], "y" * 1_000_000: 1},
        {"model": "m", "messages": [{"role": "y" * 1_000_000}]},
    ],
)
def test_errors_repeat_no_long_values(body: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as raised:
        parse_body(ChatRequest, json.dumps(body).encode())
    assert len(raised.value.message) < 500 and len(raised.value.param or "") < 200


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


def test_a_constant_is_demanded_as_a_list_of_one_is() -> None:
    for schema in ({"const": {"a": 1}}, {"properties": {"images": {"const": 1}}}):
        with pytest.raises(ApiError, match=r"cannot be met: answer.* is not"):
            check_format(format_of(schema))
    status = {"images": {"items": {"properties": {"status": {"const": "ok"}}}}}
    answer = {"images": [{"index": 0, "status": "ok"}]}
    assert shaped(answer, format_of({"properties": status})) == {"images": [{"status": "ok"}]}


def format_of(schema: dict[str, Any]) -> SchemaFormat:
    document = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    return SchemaFormat.model_validate(document)


@pytest.mark.parametrize("body", [b"null", b"[]", b"5", b'"text"'])
def test_a_body_that_is_no_object_has_no_parameter(body: bytes) -> None:
    with pytest.raises(ApiError, match=r"^The body is ") as raised:
        parse_body(DetectionsRequest, body)
    assert (raised.value.code, raised.value.param) == ("invalid_value", None)
