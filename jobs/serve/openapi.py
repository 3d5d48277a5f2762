"""The OpenAPI document at `/openapi.json`."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from jobs.serve.http.chat import ChatRequest
from jobs.serve.http.detections import DetectionsRequest
from jobs.serve.protocol.response_format import ChatAnswer

TITLE = "detr-batch serve"
DESCRIPTION = (
    "Object detection that OpenAI's clients speak: images in, boxes out. Boxes are "
    "`x_min, y_min, x_max, y_max` in pixels of the upright image."
)
PREFIX = "#/components/schemas/"
ERRORS = {
    "400": "The request is wrong, or asks for what is not offered.",
    "401": "The key is missing, wrong or revoked.",
    "404": "There is no such model, file or batch.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "429": "The key has used its minute up.",
    "503": "The server is busy.",
}


class ErrorDetails(BaseModel):
    """Why a request was refused."""

    message: str = Field(description="The reason, for people.")
    type: str
    param: str | None = Field(description="The part of the request at fault.")
    code: str | None = Field(description="A constant for programs.")


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetails


def describe(app: FastAPI, with_keys: bool) -> dict[str, Any]:
    """The document of an app: the routes, with the errors that all of them have."""
    document = get_openapi(
        title=TITLE, version="1", description=DESCRIPTION, routes=app.routes, tags=app.openapi_tags
    )
    models: list[Any] = [(one, "validation") for one in (ChatRequest, DetectionsRequest)]
    models += [(one, "serialization") for one in (ChatAnswer, ErrorBody)]
    _, described = models_json_schema(models, ref_template=f"{PREFIX}{{model}}")
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **described["$defs"]}
    for unused in ("HTTPValidationError", "ValidationError"):  # of FastAPI, in another form
        components["schemas"].pop(unused, None)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _add_errors(operation, path)
    if with_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["security"] = [{"key": []}] if path.startswith("/v1/") else []
    return document


def _add_errors(operation: dict[str, Any], path: str) -> None:
    schema = {"application/json": {"schema": {"$ref": f"{PREFIX}ErrorBody"}}}
    answers = operation["responses"]
    answers.pop("422", None)
    statuses = ERRORS if path.startswith("/v1/") else ("503",)
    answers.update({one: {"description": ERRORS[one], "content": schema} for one in statuses})
