"""Errors of stores in words that say what to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from pipeline.storage.errors import InputError, OutputError, StorageUnavailable
from pipeline.storage.files import open_location
from pipeline.storage.folders import nearest_name
from pipeline.storage.limits import reached_limit
from pipeline.storage.protocols import is_local, protocol_of
from pipeline.storage.retries import has_answered_before
from pipeline.storage.urls import mask

LONGEST_REASON = 400  # characters of an error's text; some quote the body of an answer


def describe_error(error: BaseException, url: str) -> str:
    """A storage error as one line that says what to do."""
    cause = error.__cause__
    of_web = isinstance(cause, InputError) or type(cause).__module__.startswith("aiohttp")
    if isinstance(error, FileNotFoundError) and of_web:
        error = cast(Exception, cause)  # fsspec says of all errors of the web that nothing is there
    kind = type(error).__name__
    name = mask(url)
    if isinstance(error, InputError):  # it names the object itself
        return mask(str(error), url)
    if kind == "NoCredentialsError":
        return f"no credentials for {name}: set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or a role"
    if isinstance(error, FileNotFoundError) or kind == "NoSuchBucket":
        hint = ", and the bucket's region" if protocol_of(url) in ("s3", "s3a") else ""
        near = nearest_name(open_location(url, "")[1]) if is_local(url) else None
        hint = f"; is it {near}?" if near else hint
        if is_local(url) and {"*", "?"} & {*url}:
            hint = ". Patterns are not taken: name the folder, or a list"
        return f"{name} does not exist: check the spelling{hint}"
    if isinstance(error, NotADirectoryError):
        return f"{name} is a file, or lies below one: name a folder"
    if isinstance(error, IsADirectoryError):
        return f"{name} is a folder: name a file"
    line = _first_line(error, url)
    if isinstance(error, PermissionError) and is_local(url):
        place = mask(os.fspath(error.filename or url), url)
        return f"{name} is forbidden to this user: check the rights of {place} and of its folders"
    if isinstance(error, PermissionError):
        return f"{name} is forbidden: check the credentials and their rights ({line})"
    return f"{name} cannot be reached: {kind}: {line}"


@contextmanager
def explain_errors(what: str, url: str) -> Iterator[None]:
    """Convert storage errors of the `with` block to InputErrors. `what` names `url` ("INPUT").

    Raises StorageUnavailable if a store that has answered before fails now, or if a limit of this
    machine is reached: this is not the fault of the arguments.
    """
    try:
        yield
    except (InputError, OutputError, StorageUnavailable):
        raise
    except Exception as error:  # botocore's errors have no common base class with OSError
        if (limit := reached_limit(error)) is not None:
            raise StorageUnavailable(
                f"{what} {mask(url)}: {limit}, then run the same command again"
            ) from error
        text = f"{what} {describe_error(error, url)}"
        if has_answered_before(error):
            raise StorageUnavailable(f"{text}; run the same command again when it can") from error
        raise InputError(text) from error


def _first_line(error: BaseException, url: str) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    shown = mask(line, url)  # before it is cut, so that no half of a secret is left
    return shown if len(shown) <= LONGEST_REASON else f"{shown[:LONGEST_REASON]}..."
