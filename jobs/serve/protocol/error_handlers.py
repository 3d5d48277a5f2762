"""Every error of the endpoint as the body that OpenAI's clients understand."""

import logging
import traceback
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from jobs.serve.protocol.errors import ApiError
from pipeline.storage.errors import StorageUnavailable
from pipeline.storage.urls import mask, printable

log = logging.getLogger(__name__)

LONGEST_VALUE = 100  # characters of a wrong value that an error repeats


def install(app: FastAPI) -> None:
    """Let the app answer all errors in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return response_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return response_of(invalid_request(error.errors()))

    @app.exception_handler(HTTPException)
    async def of_framework(request: Request, error: HTTPException) -> Response:
        return response_of(_of_framework(request, error))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return response_of(unexpected_error(error))


def response_of(error: ApiError) -> JSONResponse:
    """The answer to a request that is refused."""
    return JSONResponse(error.body(), error.status, error.headers)


def unexpected_error(error: Exception) -> ApiError:
    """What is said of an error that nobody expected. The log has the rest, without secrets."""
    if isinstance(error, StorageUnavailable):
        log.warning("%s", mask(str(error)))
        return ApiError(503, "The server's store does not answer. Try again.", "store_unavailable")
    log.error("%s", printable(mask("".join(traceback.format_exception(error)))))
    return ApiError(
        500,
        "The server made a mistake; its log says which. The x-request-id of this answer finds it.",
        "internal_error",
    )


def parse_error(error: ValidationError) -> ApiError:
    """The answer to a body that its model refused."""
    return invalid_request(error.errors(include_url=False))


def invalid_request(errors: Sequence[Any]) -> ApiError:
    """The first error of pydantic as an answer. The others are counted."""
    first = errors[0]
    # Pydantic names the types of a union in the place of an error; they are no part of the request.
    place = [part for part in first["loc"] if part != "body" and not _is_type(part)]
    param = ""
    for part in place:
        param += f"[{part}]" if isinstance(part, int) else f"{'.' if param else ''}{part}"
    kind, value = first["type"], _shown(first.get("input"))
    if kind == "extra_forbidden":
        text, code = (
            f"The parameter `{param}` is unknown or not offered: leave it out",
            "unknown_parameter",
        )
    elif kind == "missing":
        text, code = f"The parameter `{param}` is missing", "missing_required_parameter"
    elif kind == "json_invalid":
        text, code = f"The body is no JSON ({first.get('ctx', {}).get('error')})", "invalid_json"
    else:
        reason = first["msg"][:1].lower() + first["msg"][1:]
        text, code = f"The parameter `{param}` is {value}: {reason}", "invalid_value"
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return ApiError(400, f"{text}{more}.", code, param or None)


def _is_type(part: object) -> bool:
    """Whether a part of an error's place is a type of a union, which pydantic names too."""
    return isinstance(part, str) and (
        part in ("str", "int", "float", "bool") or "[" in part or part[:1].isupper()
    )


def _shown(value: object) -> str:
    text = printable(mask(repr(value)))
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _of_framework(request: Request, error: HTTPException) -> ApiError:
    """404, 405 and the like, which the framework raises by itself."""
    path = printable(request.url.path)
    if error.status_code == 404:
        return ApiError(404, f"There is no {request.method} {path}.", "unknown_url")
    if error.status_code == 405:
        headers = dict(error.headers or {})
        text = f"{path} takes no {request.method}."
        return ApiError(405, text, "method_not_allowed", headers=headers)
    return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
