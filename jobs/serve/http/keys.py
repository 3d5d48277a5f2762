"""The keys of the endpoint: a JSON document with their hashes, in a file or a bucket.

A key is random, is shown once, and is kept as its SHA-256. A fast hash suffices, because nobody can
guess 256 random bits. Servers read the document again every REREAD_SECONDS.
"""

import asyncio
import hashlib
import hmac
import logging
import operator
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.serve.protocol.callers import Caller
from pipeline.storage.conditional import replace_if
from pipeline.storage.errors import InputError, StorageUnavailable
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.files import create_whole, open_location, read_object
from pipeline.storage.urls import mask

log = logging.getLogger(__name__)

PREFIX = "sk-detr-"  # pipeline/storage/secret_names.py hides what begins with it
REREAD_SECONDS = 2.0
STALE_SECONDS = 300.0  # for which a server goes on with keys that it cannot read again
ATTEMPTS = 10  # at a change of the document while others change it


Limit = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Key:
    """One key, without its secret."""

    id: str
    name: str
    scope: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    requests_per_minute: Limit | None  # None: no limit
    images_per_minute: Limit | None
    created: str  # UTC, as ISO 8601
    revoked: str | None = None

    def caller(self) -> Caller:
        return Caller(self.id, self.scope, self.requests_per_minute, self.images_per_minute)


class _Document(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: Literal[1]
    keys: list[Key]


def digest_of(secret: str) -> str:
    """The SHA-256 by which a key is known."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(url: str) -> list[Key]:
    """The keys of a document, also those that are revoked.

    Raises InputError if there is no such document or if it is none of ours, and StorageUnavailable
    if its store fails.
    """
    with explain_errors("the keys", url):
        data = read_object(*open_location(url, "the keys"))
    return _parsed(data, url)


def add_key(
    url: str,
    name: str,
    scope: str | None = None,
    requests_per_minute: int | None = None,
    images_per_minute: int | None = None,
) -> tuple[Key, str]:
    """Add a key; return it with its secret. The document is created if there is none.

    Without a `scope`, the key has one of its own. Raises InputError for a name that a key has.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    made = f"key-{secrets.token_hex(6)}"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    limits = requests_per_minute, images_per_minute
    key = Key(made, name, scope or made, digest_of(secret), *limits, now)

    def changed(keys: list[Key]) -> list[Key]:
        if any(other.name == name and other.revoked is None for other in keys):
            raise InputError(
                f"there is a key with the name {name}: revoke it, or give another name"
            )
        return [*keys, key]

    _change(url, changed)
    return key, secret


def revoke_key(url: str, key: str) -> Key:
    """Revoke the key with this id or name. Raises InputError if there is none."""
    found: list[Key] = []

    def changed(keys: list[Key]) -> list[Key]:
        found[:] = [one for one in keys if one.revoked is None and key in (one.id, one.name)]
        if not found:
            valid = ", ".join(one.name for one in keys if one.revoked is None) or "none"
            raise InputError(f"no valid key has the id or name {key}: valid are {valid}")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return [replace(one, revoked=now) if one in found else one for one in keys]

    _change(url, changed)
    return found[0]


def _change(url: str, changed: Callable[[list[Key]], list[Key]]) -> None:
    """Replace the keys by what `changed` makes of them, whoever else changes them meanwhile."""
    with explain_errors("the keys", url), _private_files():
        fs, path = open_location(url, "the keys")
        for _ in range(ATTEMPTS):
            try:
                before = read_object(fs, path)
            except FileNotFoundError:
                if create_whole(fs, path, _document(changed([]))):
                    return
                continue
            after = _document(changed(_parsed(before, url)))
            if replace_if(fs, path, partial(operator.eq, before), after):
                return
    raise StorageUnavailable(f"the keys {mask(url)} are being changed by others: try again")


@contextmanager
def _private_files() -> Iterator[None]:
    """Let only the user of this process read the files that the block makes."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _document(keys: list[Key]) -> bytes:
    return (_Document(format=1, keys=keys).model_dump_json(indent=1) + "\n").encode()


def _parsed(data: bytes, url: str) -> list[Key]:
    try:
        return _Document.model_validate_json(data).keys
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise InputError(
            f"{mask(url)} is no file of keys of detr-batch serve-keys ({where}{first['msg']})"
        ) from error


class KeyRing:
    """The valid keys of a document, which `keep_reading` reads again while the server runs."""

    def __init__(self, url: str):
        """Raises as `read_keys`."""
        self._url = url
        self._keys = read_keys(url)
        self._read_at = time.monotonic()

    @property
    def is_stale(self) -> bool:
        """Whether the document could not be read for STALE_SECONDS."""
        return time.monotonic() - self._read_at > STALE_SECONDS

    def caller(self, secret: str) -> Caller | None:
        """The holder of a key; None if the key is unknown or revoked.

        Raises StorageUnavailable if the document could not be read for STALE_SECONDS.
        """
        if self.is_stale:
            raise StorageUnavailable(f"the keys {mask(self._url)} cannot be read any more")
        digest = digest_of(secret)
        found = None
        for key in self._keys:  # all are compared, so that the time tells nothing
            if hmac.compare_digest(key.sha256, digest) and key.revoked is None:
                found = key
        return found.caller() if found else None

    async def keep_reading(self) -> None:
        """Read the document every REREAD_SECONDS, until this is cancelled."""
        while True:
            await asyncio.sleep(REREAD_SECONDS)
            try:
                self._keys = await asyncio.to_thread(read_keys, self._url)
                self._read_at = time.monotonic()
            except Exception as error:  # whatever it is, the next reading may do
                log.warning("the keys are those of before: %s", mask(str(error)))
