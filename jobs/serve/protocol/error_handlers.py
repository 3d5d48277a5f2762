"""Every error of the endpoint as the body that OpenAI's clients understand."""

import logging
import traceback

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import invalid_request
from pipeline.storage.errors import StorageUnavailable
from pipeline.storage.urls import mask, printable

log = logging.getLogger(__name__)
CLIENT_HAS_GONE = 499  # a status for metrics, which nobody gets


def install(app: FastAPI) -> None:
    """Let the app answer all errors in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return response_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return response_of(invalid_request(error.errors()))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_HAS_GONE)

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
