"""Where things lie: local paths and object stores through fsspec, with errors people can act on."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import has_magic, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from model.urls import mask

# A stalled request fails after this long and is tried again, a bounded number of times.
S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,  # other processes write: what was listed before is stale
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 60,
        "retries": {"max_attempts": 5, "mode": "standard"},
    },
}


class InputError(ValueError):
    """A mistake of the user's: one line that says what to do."""


def join(url: str, *parts: str) -> str:
    """`url` with `parts` below it."""
    return "/".join([url.rstrip("/"), *parts])


def open_location(url: str, what: str) -> tuple[AbstractFileSystem, str]:
    """File system and path of a local path or URL. InputError for an unknown protocol.

    Endpoint and credentials of S3 come from the environment (AWS_ENDPOINT_URL, AWS_PROFILE, ...).
    """
    options = S3_OPTIONS if url.startswith(("s3://", "s3a://")) else {}
    try:
        fs, path = url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise InputError(f"{what} {mask(url)} cannot be opened: {error}") from error
    if isinstance(fs, LocalFileSystem):
        path = os.path.normpath(path)  # one name for one place
    return fs, path


def uri(fs: AbstractFileSystem, path: str) -> str:
    """The one URL of an object, `file:///...` for local files."""
    return str(fs.unstrip_protocol(path))


def describe(error: BaseException, url: str) -> str:
    """A storage error as one line that says what to do."""
    kind = type(error).__name__
    place = mask(url)
    if kind == "NoCredentialsError":
        return f"no credentials for {place}: set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or a role"
    if isinstance(error, FileNotFoundError) or kind == "NoSuchBucket":
        return f"{place} does not exist: check the spelling, and the bucket's region"
    if isinstance(error, PermissionError):
        return (
            f"{place} is forbidden: check the credentials and their rights ({_first_line(error)})"
        )
    return f"{place} cannot be reached: {kind}: {_first_line(error)}"


# S3's answers that say nothing about the object that was asked for.
_PASSING_CODES = {
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeTooSkewed",
    "ThrottlingException", "ExpiredToken", "TokenRefreshRequired", "IncompleteBody",
}  # fmt: skip
_CLIENTS = ("aiohttp", "aiobotocore", "botocore", "urllib3")  # their own errors: no connection


def is_passing(error: BaseException) -> bool:
    """Whether storage failed for a time, or for everything: no word about one object.

    Such an error must end the run, to be taken up again: as the row of an image it would stay.
    """
    cause = error.__cause__ or error
    answer = getattr(cause, "response", None) or {}
    if isinstance(answer, dict) and answer:
        code = str(answer.get("Error", {}).get("Code"))
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0
        return code in _PASSING_CODES or status >= 500 or status == 429
    status = getattr(cause, "status", 0)  # aiohttp's answers
    if status:
        return bool(status >= 500 or status == 429)
    if isinstance(cause, FileNotFoundError | PermissionError):
        return False
    kind = type(cause).__module__.split(".")[0]
    return isinstance(cause, TimeoutError | ConnectionError) or kind in _CLIENTS


@contextmanager
def explained(what: str, url: str) -> Iterator[None]:
    """Errors of the storage inside, as InputErrors that name what lies at `url` ("INPUT")."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # botocore's errors share no base with OSError
        raise InputError(f"{what} {describe(error, url)}") from error


def _first_line(error: BaseException) -> str:
    return mask((str(error).splitlines() or [type(error).__name__])[0])


def remove_tree(fs: AbstractFileSystem, path: str) -> None:
    """Delete all below `path`; brackets and stars in it are no patterns, as in `fs.rm`."""
    if isinstance(fs, LocalFileSystem):
        shutil.rmtree(path)
        return
    files = fs.find(path)
    if has_magic(path):
        for name in files:
            fs.rm_file(name)
    elif files:
        fs.rm(path, recursive=True)


def write_whole(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Make an object appear whole or not at all: one put, or a rename of a hidden local file."""
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
