"""Object stores fail for moments. Requests are repeated within bounds, with growing random pauses.

The only layer that repeats: s3fs and botocore are told not to (files.py), so that the bounds hold
and `repeated` counts all of it for the report. adlfs and gcsfs cannot be told: each of our attempts
has some of theirs in it.
"""

import os
import random
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from fsspec.implementations.local import LocalFileSystem

# Seconds for which a request is repeated before the run ends, to be taken up by the next.
PATIENCE = float(os.environ.get("DETR_BATCH_STORE_PATIENCE", "180"))
# With a store that never answered, where a person waits: a misspelt endpoint, as a rule.
PATIENCE_AT_FIRST = 20.0
ATTEMPTS = 12
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 20.0

# S3's answers that say nothing about the object that was asked for.
_PASSING_CODES = {
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeTooSkewed",
    "ThrottlingException", "ExpiredToken", "TokenRefreshRequired", "IncompleteBody",
}  # fmt: skip
# Errors of these libraries that have no HTTP status mean that there is no connection.
_CLIENTS = {
    "aiohttp", "aiobotocore", "botocore", "urllib3", "azure", "gcsfs", "google", "requests",
}  # fmt: skip
# Of these, mistakes of the set-up, which no repetition mends.
_LASTING = {
    "NoCredentialsError", "PartialCredentialsError", "NoRegionError", "ProfileNotFound",
    "ParamValidationError", "ConfigNotFound", "InvalidEndpointConfigurationError",
    "ClientAuthenticationError", "CredentialUnavailableError", "DefaultCredentialsError",
}  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")

repeated = 0  # requests of this process that were repeated
person_waits = False  # whether this process is a person's command
_answered = False  # whether a store ever answered this process


def is_transient(error: BaseException) -> bool:
    """Whether storage failed for a time, or for everything: no word about one object.

    Such an error must end the run, to be taken up again: as the row of an image it would stay.
    """
    cause = error.__cause__ or error
    answer = _answer(cause)
    if answer:
        code = str(answer.get("Error", {}).get("Code"))
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0
        return code in _PASSING_CODES or status >= 500 or status == 429
    status = _status(cause)
    if status:
        return status >= 500 or status in (408, 429)
    if isinstance(cause, FileNotFoundError | PermissionError):
        return False
    kind = type(cause).__module__.split(".")[0]
    return isinstance(cause, TimeoutError | ConnectionError) or kind in _CLIENTS


def retry(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What the call returns; its last error where it goes on failing, or says something lasting."""
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
            if lasting or attempt == ATTEMPTS or spent + pause > _patience():
                raise
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, LONGEST_PAUSE)
        repeated += 1
    raise AssertionError("the last attempt returns or raises")


def _patience() -> float:
    return min(PATIENCE, PATIENCE_AT_FIRST) if person_waits and not _answered else PATIENCE


def _answer(error: BaseException) -> dict[str, Any]:
    """What the store answered, where botocore kept it."""
    answer = getattr(error, "response", None)
    return answer if isinstance(answer, dict) else {}


def _status(error: BaseException) -> int:
    """The HTTP status that aiohttp, azure-core, gcsfs, or requests kept; 0 where there is none."""
    response = getattr(error, "response", None)
    kept = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    kept.append(getattr(response, "status_code", None))
    return next((int(status) for status in kept if isinstance(status, int)), 0)
