"""Read loose image files, each of which is one image."""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from fsspec import AbstractFileSystem

from pipeline.formats.members import open_member
from pipeline.formats.rows import (
    CHANGED_TEXT,
    MAX_ENCODED_BYTES,
    failed_image,
    image_row,
    is_planned,
    is_unavailable,
    patience,
    status_of_missing,
    too_large_text,
)
from pipeline.isolation.child import Row
from pipeline.schema import (
    CHANGED,
    NOT_ALLOWED,
    TOO_LARGE,
    UNAVAILABLE,
    Member,
    Shard,
)
from pipeline.storage.availability import ask, know
from pipeline.storage.explained_errors import describe_error
from pipeline.storage.files import read_object
from pipeline.storage.retries import retry
from pipeline.storage.urls import identity

FETCH_AT_ONCE = 16  # concurrent requests for loose files; latency, not bandwidth, is the limit


def read_files(shard: Shard, start: int) -> Iterator[Row]:
    """Rows of loose files, fetched FETCH_AT_ONCE at a time. The id of an image is its URL."""
    know(member.uri for member in shard.members if member.etag != NOT_ALLOWED)
    with ThreadPoolExecutor(FETCH_AT_ONCE) as pool:
        for first in range(start, len(shard.members), FETCH_AT_ONCE):
            yield from pool.map(_read_file, shard.members[first : first + FETCH_AT_ONCE])


def _read_file(member: Member) -> Row:
    """The row of one loose file; a failed row if the file cannot be read.

    Raises StorageUnavailable if the store is unavailable as a whole.
    """
    name = identity(member.uri)
    began = time.monotonic()
    try:
        fs, path = open_member(member, "image")
        encoded = ask(member.uri, lambda: _content(fs, path, member), patience(member))
        if isinstance(encoded, int):
            return failed_image(member, name, TOO_LARGE, too_large_text(encoded))
        if not _as_planned(fs, path, member, encoded):
            return failed_image(member, name, CHANGED, CHANGED_TEXT)
        return image_row(member, name, encoded)
    except Exception as error:  # stores raise many types
        is_passing = is_unavailable(error, member, began)
        status = UNAVAILABLE if is_passing else status_of_missing(error)
        return failed_image(member, name, status, describe_error(error, member.uri))


def _content(fs: AbstractFileSystem, path: str, member: Member) -> bytes | int:
    """The bytes of a file, or its size if it is above MAX_ENCODED_BYTES."""
    if "http" in fs.protocol:  # of the web the listing knows no size that can be relied on
        found: bytes | int = retry(fs.read_whole, path, MAX_ENCODED_BYTES)
        return found
    if member.size > MAX_ENCODED_BYTES:
        return member.size
    # One byte more than there should be shows that there is more.
    most = member.size if member.size >= 0 else MAX_ENCODED_BYTES
    encoded = read_object(fs, path, most + 1 if most else 0)
    return encoded if len(encoded) <= MAX_ENCODED_BYTES else len(encoded)


def _as_planned(fs: AbstractFileSystem, path: str, member: Member, content: bytes) -> bool:
    """Whether `content` is the version that was listed.

    The store is asked only if the bytes do not decide it.
    """
    if "http" in fs.protocol:
        return True
    if member.size >= 0 and len(content) != member.size:
        return False
    # S3's ETag is the MD5 of an object that one request wrote, unless a key encrypts the object.
    if len(member.etag) == 32:
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest == member.etag:
            return True
    return is_planned(fs, path, member)
