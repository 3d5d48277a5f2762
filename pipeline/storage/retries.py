"""Retries of requests to object stores, which fail temporarily.

Retries have limits, and the pauses between them are random and grow. This is the only layer that
retries. s3fs and botocore are configured not to retry (files.py), so that the limits hold and
`repeated` counts all retries for the report. adlfs and gcsfs cannot be configured so: each of our
attempts may include several of theirs.
"""

import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.environment import number_of_variable

# Seconds for which a request is retried before the run ends. The next run resumes it.
PATIENCE = number_of_variable("DETR_BATCH_STORE_PATIENCE", 180)
# The same limit for a store that has never answered while a person waits. The usual cause is a
# misspelt endpoint.
PATIENCE_AT_FIRST = 20.0
ATTEMPTS, HOST_ATTEMPTS = 12, 3  # the latter for a host that does not exist
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 20.0

# Error codes of S3 that say nothing about the requested object.
_PASSING_CODES = {
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeTooSkewed",
    "ThrottlingException", "ExpiredToken", "TokenRefreshRequired", "IncompleteBody",
}  # fmt: skip
# An error of one of these libraries that has no HTTP status means that there is no connection.
_CLIENTS = {
    "aiohttp", "aiobotocore", "botocore", "urllib3", "azure", "gcsfs", "google", "requests",
}  # fmt: skip
# Errors of these libraries for a wrong configuration, which a retry cannot correct.
_LASTING = {
    "NoCredentialsError", "PartialCredentialsError", "NoRegionError", "ProfileNotFound",
    "ParamValidationError", "ConfigNotFound", "InvalidEndpointConfigurationError",
    "ClientAuthenticationError", "CredentialUnavailableError", "DefaultCredentialsError",
}  # fmt: skip

# Errors of aiohttp that concern an address: what its host is, or where it leads to.
_OF_ADDRESS = {
    "ClientConnectorCertificateError", "ClientConnectorSSLError", "ServerFingerprintMismatch",
    "InvalidURL", "InvalidUrlClientError", "InvalidUrlRedirectClientError",
    "NonHttpUrlClientError", "NonHttpUrlRedirectClientError", "TooManyRedirects",
}  # fmt: skip
_NO_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

P = ParamSpec("P")
T = TypeVar("T")

repeated = 0  # number of retries in this process
person_waits = False  # whether a person started this process and waits for it
_answered = False  # whether a store has ever answered this process
_condition: ContextVar[Callable[[], bool] | None] = ContextVar("condition", default=None)


def is_transient(error: BaseException) -> bool:
    """Whether an error concerns the store, temporarily or as a whole, and not one object.

    Such an error must end the run, which can be resumed. A failed row of an image would be final.
    """
    cause = error.__cause__ or error
    answer = _answer(cause)
    if answer:
        code = str(answer.get("Error", {}).get("Code"))
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0
        return code in _PASSING_CODES or _is_passing(status)
    status = _status(cause)
    if status:
        return _is_passing(status)
    if isinstance(cause, FileNotFoundError | PermissionError):
        return False
    if type(cause).__name__ in _OF_ADDRESS:
        return False
    kind = type(cause).__module__.split(".")[0]
    return isinstance(cause, TimeoutError | ConnectionError) or kind in _CLIENTS


def is_unknown_host(error: BaseException, url: str) -> bool:
    """Whether the host of an HTTP address does not exist. This concerns the address alone."""
    return url.startswith(("http://", "https://")) and _has_no_host(error)


def _has_no_host(error: BaseException) -> bool:
    cause = error.__cause__ or error
    cause = getattr(cause, "kwargs", {}).get("error", cause)  # botocore keeps that of aiohttp there
    reason = getattr(cause, "os_error", None)  # aiohttp keeps it there
    return isinstance(reason, socket.gaierror) and reason.errno in _NO_HOST


def has_answered_before(error: BaseException) -> bool:
    """Whether a transient error comes from a store that has answered this process.

    The arguments of the command are right then, and the same command may succeed later.
    """
    cause = error.__cause__ or error
    return _answered and is_transient(error) and type(cause).__name__ not in _LASTING


def answered_status(error: BaseException) -> int:
    """The HTTP status of the store's answer in an error; 0 if the store did not answer."""
    cause = error.__cause__ or error
    status = _answer(cause).get("ResponseMetadata", {}).get("HTTPStatusCode") or _status(cause)
    return int(status or 0)


def is_from_store(error: BaseException) -> bool:
    """Whether an error is about getting an object, and not about the bytes of the object."""
    cause = error.__cause__ or error
    if isinstance(error, FileNotFoundError | PermissionError) or _answer(cause) or _status(cause):
        return True
    # Parsers raise OSErrors without a number.
    return isinstance(error, OSError) and error.errno is not None


def _is_passing(status: int) -> bool:
    """Whether a request with this HTTP status may succeed later. 501 says that it never will."""
    return (status >= 500 and status != 501) or status in (408, 429)


@contextmanager
def repeat_while(condition: Callable[[], bool]) -> Iterator[None]:
    """Repeat requests of the `with` block, in this thread, only while the condition holds."""
    token = _condition.set(condition)
    try:
        yield
    finally:
        _condition.reset(token)


def retry(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call `call` with the arguments, retry it after transient errors, and return its result.

    Raises the last error when the limits are reached, and a permanent error at once.
    """
    global repeated, _answered
    on_disk = isinstance(getattr(call, "__self__", None), LocalFileSystem)
    began = time.monotonic()
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            result = call(*arguments, **options)
            _answered = _answered or not on_disk
            return result
        except Exception as error:
            cause = error.__cause__ or error
            _answered = _answered or bool(_answer(cause) or _status(cause))
            lasting = not is_transient(error) or type(cause).__name__ in _LASTING
            spent = time.monotonic() - began
            # One request that stands still exceeds the first patience, and proves nothing.
            impatient = attempt > 1 and spent + pause > _patience()
            no_host = attempt >= HOST_ATTEMPTS and _has_no_host(error)
            if lasting or attempt == ATTEMPTS or impatient or no_host:
                raise
            failure = error
        time.sleep(random.uniform(pause / 2, pause))
        condition = _condition.get()
        if condition is not None and not condition():
            raise failure
        pause = min(2 * pause, LONGEST_PAUSE)
        repeated += 1
    raise AssertionError("the last attempt returns or raises")


def _patience() -> float:
    return min(PATIENCE, PATIENCE_AT_FIRST) if person_waits and not _answered else PATIENCE


def _answer(error: BaseException) -> dict[str, Any]:
    """The response of the store that botocore stored in its error; {} if there is none."""
    answer = getattr(error, "response", None)
    return answer if isinstance(answer, dict) else {}


def _status(error: BaseException) -> int:
    """The HTTP status in an error of aiohttp, azure-core, gcsfs or requests; 0 if there is none."""
    response = getattr(error, "response", None)
    names = ["status", "status_code"]
    if not type(error).__module__.startswith("aiohttp"):  # a broken answer has the code 400 there
        names.append("code")
    statuses = [getattr(error, name, None) for name in names]
    statuses.append(getattr(response, "status_code", None))
    return next((int(status) for status in statuses if isinstance(status, int)), 0)
