"""The rows of images that were read, or could not be, and their names."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from fsspec import AbstractFileSystem

from pipeline.isolation.child import Row
from pipeline.schema import (
    ADDRESS_NOT_ALLOWED,
    CHANGED,
    CORRUPT_SHARD,
    EMPTY_FILE,
    OK,
    UNAVAILABLE,
    UNREACHED,
    UNREADABLE,
    Member,
)
from pipeline.storage import retries
from pipeline.storage.availability import ask, concerns_object_alone
from pipeline.storage.environment import number_of_variable
from pipeline.storage.explained_errors import describe_error
from pipeline.storage.files import InputError, StorageUnavailable, object_info, open_object
from pipeline.storage.image_hosts import RefusedAddress
from pipeline.storage.retries import is_from_store, is_transient, is_unknown_host
from pipeline.storage.urls import identity, mask
from pipeline.storage.versions import etag_of

# Size limit of one image file. A larger image is not read.
MAX_ENCODED_BYTES = int(number_of_variable("DETR_BATCH_MAX_IMAGE_BYTES", 268435456))
# Seconds for which requests are repeated for an object that planning could not reach either.
UNREACHED_SECONDS = 5.0
CHANGED_TEXT = "the object changed after it was listed: the next run labels what is there now"


def image_row(member: Member, image_id: str, encoded: bytes) -> Row:
    if not encoded:
        return failed_image(member, image_id, EMPTY_FILE, "zero bytes")
    return {
        "image_id": image_id,
        "uri": identity(member.uri),
        "etag": member.etag,
        "status": OK,
        "error": None,
        "encoded": encoded,
    }


def failed_image(member: Member, image_id: str, status: str, error: str) -> Row:
    """The row of an image that could not be read. The error is written without secrets."""
    return {
        "image_id": image_id,
        "uri": identity(member.uri),
        "etag": member.etag,
        "status": status,
        "error": mask(error, member.uri),
        "encoded": None,
    }


def too_large_text(size: int) -> str:
    return f"{size} bytes are more than {MAX_ENCODED_BYTES}"


class Names:
    """The ids of the images of an archive, each of which is given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._next: dict[str, int] = {}  # by name: the first number that may be free

    def unique(self, *candidates: str) -> str:
        """The first candidate that was not given yet, or the last one with a number behind it."""
        for name in candidates:
            if name not in self._given:
                self._given.add(name)
                return name
        number = self._next.get(candidates[-1], 2)
        while (name := f"{candidates[-1]}~{number}") in self._given:
            number += 1
        self._next[candidates[-1]] = number + 1
        self._given.add(name)
        return name


class _OtherVersion(Exception):
    """The archive is not the version that was listed."""


@contextmanager
def open_version(fs: AbstractFileSystem, path: str, member: Member) -> Iterator[BinaryIO]:
    """Open the archive for reading, and check its version at the start and at the end.

    Raises _OtherVersion if it is not the version that was listed. (s3fs raises FileExpired if it
    finds a new version between two requests.)
    """
    with ask(member.uri, lambda: open_object(fs, path), patience(member)) as file:
        if not is_planned(fs, path, member):
            raise _OtherVersion
        yield file
    if not is_planned(fs, path, member):
        raise _OtherVersion


def row_of_rest(member: Member, count: int, error: Exception, broken: str, names: Names) -> Row:
    """The failed row for the rest of an archive, after its first `count` images.

    Raises StorageUnavailable if the store is unavailable as a whole.
    """
    from s3fs.utils import FileExpired  # takes 0.2 s of each process that reads

    fails_alone = is_unavailable(error, member, time.monotonic() - retries.PATIENCE)
    if isinstance(error, FileExpired | _OtherVersion):
        name = names.unique(f"{identity(member.uri)}#changed-after-{count}")
        return failed_image(member, name, CHANGED, CHANGED_TEXT)
    gone = fails_alone or isinstance(error, InputError) or is_from_store(error)
    reason = describe_error(error, member.uri) if gone else f"{broken}: {error}"
    name = f"{identity(member.uri)}#broken-after-{count}" if count else identity(member.uri)
    name = names.unique(name)
    status = UNAVAILABLE if fails_alone else status_of_missing(error) if gone else CORRUPT_SHARD
    return failed_image(member, name, status, reason)


def status_of_missing(error: Exception) -> str:
    """The status of an object that cannot be had, whatever its store does."""
    return ADDRESS_NOT_ALLOWED if isinstance(error, RefusedAddress) else UNREADABLE


def is_planned(fs: AbstractFileSystem, path: str, member: Member) -> bool:
    """Whether the object is still the version that was listed, as far as the store can tell."""
    if "http" in fs.protocol:  # one address may lead to many servers, each with its own etags
        return True
    return etag_of(object_info(fs, path)) == member.etag


def patience(member: Member) -> float:
    """The seconds for which requests for an object are repeated; retries.py may allow fewer."""
    return UNREACHED_SECONDS if member.etag == UNREACHED else math.inf


def is_unavailable(error: Exception, member: Member, since: float) -> bool:
    """Whether the object cannot be had for now, while stores answer for others.

    `since` is when the object was first requested (time.monotonic()).

    Raises StorageUnavailable if no store answers: this would be true of all objects.
    """
    if isinstance(error, StorageUnavailable):
        raise error
    if not is_transient(error) or is_unknown_host(error, member.uri):
        return False
    if member.etag != UNREACHED and not concerns_object_alone(member.uri, since):
        raise StorageUnavailable(describe_error(error, member.uri)) from error
    return True
