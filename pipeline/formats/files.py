"""Read loose image files, each of which is one image."""

import hashlib
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
    raise_passing,
    too_large_text,
)
from pipeline.isolation.child import Row
from pipeline.schema import CHANGED, TOO_LARGE, UNREADABLE, Member, Shard
from pipeline.storage.files import describe_error, read_object
from pipeline.storage.urls import identity

FETCH_AT_ONCE = 16  # concurrent requests for loose files; latency, not bandwidth, is the limit


def read_files(shard: Shard, start: int) -> Iterator[Row]:
    """Rows of loose files, fetched FETCH_AT_ONCE at a time. The id of an image is its URL."""
    with ThreadPoolExecutor(FETCH_AT_ONCE) as pool:
        for first in range(start, len(shard.members), FETCH_AT_ONCE):
            yield from pool.map(_read_file, shard.members[first : first + FETCH_AT_ONCE])


def _read_file(member: Member) -> Row:
    """The row of one loose file; a failed row if the file cannot be read."""
    if member.size > MAX_ENCODED_BYTES:
        return failed_image(member, identity(member.uri), TOO_LARGE, too_large_text(member.size))
    try:
        fs, path = open_member(member, "image")
        # One byte more than there should be shows that there is more.
        most = member.size if member.size >= 0 else MAX_ENCODED_BYTES
        encoded = read_object(fs, path, most + 1 if most else 0)
        if len(encoded) > MAX_ENCODED_BYTES:
            return failed_image(
                member, identity(member.uri), TOO_LARGE, too_large_text(len(encoded))
            )
        if not _as_planned(fs, path, member, encoded):
            return failed_image(member, identity(member.uri), CHANGED, CHANGED_TEXT)
        return image_row(member, identity(member.uri), encoded)
    except Exception as error:  # stores raise many types; transient errors end the run instead
        raise_passing(error, member)
        return failed_image(
            member, identity(member.uri), UNREADABLE, describe_error(error, member.uri)
        )


def _as_planned(fs: AbstractFileSystem, path: str, member: Member, content: bytes) -> bool:
    """Whether `content` is the version that was listed.

    The store is asked only if the bytes do not decide it.
    """
    if member.size >= 0 and len(content) != member.size:
        return False
    # S3's ETag is the MD5 of an object that one request wrote, unless a key encrypts the object.
    if len(member.etag) == 32:
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest == member.etag:
            return True
    return is_planned(fs, path, member)
