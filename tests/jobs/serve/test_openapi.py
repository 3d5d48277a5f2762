"""The OpenAPI document: that the server does what it says, whatever it is sent."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from jobs.serve.settings.settings import ApiSettings
from tests.jobs.serve.test_bodies import CAT, Standing
from tests.support.serving import MODEL, serving

EXAMPLES = 25  # requests for each operation
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def quick() -> Iterator[str]:
    """An endpoint whose engine finds the same in all images, and that downloads nothing."""
    with serving(ApiSettings(download_seconds=0.2, stall_seconds=0.2), Standing(CAT)) as address:
        yield address


OPERATIONS = [
    ("/v1/detections", "POST"),
    ("/v1/chat/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model}", "GET"),
    ("/health/live", "GET"),
    ("/health/ready", "GET"),
]


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        (*operation, mode)
        for operation in OPERATIONS
        for mode in schemathesis.GenerationMode
        if mode.is_positive or "POST" in operation  # the others take nothing that could be wrong
    ],
)
def test_every_answer_is_one_of_the_document(
    quick: str, path: str, method: str, mode: schemathesis.GenerationMode, request: Any
) -> None:
    schema = schemathesis.openapi.from_url(f"{quick}/openapi.json")
    operation = schema[path][method]

    @seed(request.config.option.seed)
    @settings(
        max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck), deadline=None
    )
    @given(operation.as_strategy(generation_mode=mode))
    def answers_as_described(case: Any) -> None:
        if mode.is_positive and isinstance(case.body, dict):
            case.body["model"] = MODEL
        response = case.call(timeout=20)
        case.validate_response(response, checks=CHECKS)

    answers_as_described()


def test_the_document_names_all_that_clients_need(quick: str) -> None:
    document = requests.get(f"{quick}/openapi.json").json()
    operations = {
        (path, method.upper()) for path, methods in document["paths"].items() for method in methods
    }
    assert operations == {*OPERATIONS, ("/metrics", "GET")}
    schemas = document["components"]["schemas"]
    assert {"ChatAnswer", "ChatRequest", "Detections", "ErrorBody"} <= set(schemas)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["description"], path
    assert "security" not in document["paths"]["/v1/models"]["get"]
