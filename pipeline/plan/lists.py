"""Lists of URLs: the objects that they name, each of which becomes a row.

A list may come from anybody. An address that is bad, or that the list may not name, costs one row
of `images`, which gives the reason. So does one whose store fails, as long as other stores answer.
"""

import os
import posixpath
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from itertools import islice
from urllib.parse import unquote

from fsspec import AbstractFileSystem

from pipeline.formats.members import make_member, readable_name
from pipeline.formats.parquet import PARQUET_SUFFIXES
from pipeline.plan.carry_choice import CarryChoice
from pipeline.plan.list_csv import CSV_SUFFIXES, is_csv_list, names_in_csv
from pipeline.plan.list_names import (
    Said,
    file_name,
    is_parquet_list,
    names_in_parquet,
    names_in_text,
)
from pipeline.schema import NOT_ALLOWED, UNREACHED, UNSEEN, Member
from pipeline.storage.availability import (
    OTHERS,
    ask,
    concerns_object_alone,
    forget_stores,
    know,
)
from pipeline.storage.explained_errors import describe_error
from pipeline.storage.files import (
    InputError,
    StorageUnavailable,
    join,
    object_info,
    open_location,
    uri,
)
from pipeline.storage.image_hosts import hosts_of_environment
from pipeline.storage.protocols import PROTOCOLS, WEB, is_local, protocol_of, store_of
from pipeline.storage.retries import is_transient, is_unknown_host, retry
from pipeline.storage.urls import identity, mask

LOOK_AT_ONCE = 16  # concurrent requests for details of objects in a list; latency is the limit
LOOKED_UP_TOGETHER = 1 << 12  # addresses whose requests wait in memory
LOOK_SECONDS = 3.0  # for which requests for the details of one object are repeated
DIGEST_BYTES = 12  # of an address; of ten million, two are the same by chance once in 10^15 lists
_USER = re.compile(r"\A//[^\s/@:]+:[^\s/]*@")
# `file:/a.jpg` and `file://localhost/a.jpg` are `file:///a.jpg` too.
_OTHER_FORMS = re.compile(r"file:(?://localhost(?=/)|(?=/(?!/)))", re.IGNORECASE)


def is_list(fs: AbstractFileSystem, path: str) -> bool:
    """Whether a file is a list of URLs: text, or CSV or Parquet with a column of addresses.

    A Parquet file with a column of images is none.
    """
    name = file_name(fs, path).lower()
    if name.endswith(CSV_SUFFIXES):
        return is_csv_list(fs, path)
    return name.endswith(".txt") or (name.endswith(PARQUET_SUFFIXES) and is_parquet_list(fs, path))


def read_url_list(
    fs: AbstractFileSystem, path: str, choice: CarryChoice | None = None
) -> Iterator[tuple[Member, bool]]:
    """The objects that a list names, in its order, and whether it named the object before.

    They have the values of the columns that `choice` carries along, if the list has columns.

    Relative names are below the folder of the list. A remote list may name remote objects only:
    `NOT_ALLOWED` marks the others. `UNREACHED` marks those whose store fails, while others answer.

    Raises InputError if the list is empty, or no list, and StorageUnavailable if no store answers.
    """
    name = file_name(fs, path).lower()
    in_parquet = name.endswith(PARQUET_SUFFIXES)
    in_csv = name.endswith(CSV_SUFFIXES) and is_csv_list(fs, path)

    def entries(choice: CarryChoice | None = None) -> Iterator[tuple[str, Said]]:
        if in_parquet:
            return names_in_parquet(fs, path, choice)
        if in_csv:
            return names_in_csv(fs, path, choice)
        return ((name, None) for name in names_in_text(fs, path))

    folder = uri(fs, file_name(fs, path)).rsplit("/", 1)[0]

    def urls() -> Iterator[str]:
        return (absolute_url(name, folder) for name, _ in entries())

    lookup = _Lookup(urls, remote_list=not is_local(folder))
    marked = _mark_repeated((absolute_url(name, folder), said) for name, said in entries(choice))
    numbers = _Numbers()
    count = 0
    forget_stores()  # of another list
    with ThreadPoolExecutor(LOOK_AT_ONCE) as pool:
        while some := list(islice(marked, LOOKED_UP_TOGETHER)):
            looked_up = pool.map(lookup.member_unless_repeated, some)
            for found, (_, _, said) in zip(looked_up, some, strict=True):
                count += 1
                if isinstance(found, str):
                    yield Member(readable_name(found), UNSEEN, -1), True
                else:
                    member = numbers.with_own_identity(found)
                    own = member or found
                    yield own if said is None else replace(own, carried=said), member is None
    if not count:
        raise InputError(
            f"the list {mask(path)} names nothing: write one address or path on each line"
        )


def _mark_repeated(entries: Iterator[tuple[str, Said]]) -> Iterator[tuple[str, bool, Said]]:
    """The URLs, whether the same one came before, letter by letter, and what the list says."""
    seen: set[bytes] = set()
    for url, said in entries:
        digest = _digest(url)
        yield url, digest in seen, said
        seen.add(digest)


def _digest(url: str) -> bytes:
    return blake2b(url.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


class _Numbers:
    """Gives each object of a list an identity of its own.

    Two addresses may differ in secrets alone (`?id=1&token=...`), which no identity holds, and lead
    to different images all the same. The second one gets the fragment `~2`, which is not sent to
    its server.
    """

    def __init__(self) -> None:
        # By identity that was given: whether it was the whole address of an object.
        self._given: dict[bytes, bool] = {}
        self._with_secrets: set[bytes] = set()  # other addresses
        self._next: dict[bytes, int] = {}  # by identity that occurred again: the next number

    def with_own_identity(self, member: Member) -> Member | None:
        """The object, perhaps with a number. None for an object that occurred before."""
        name = identity(member.uri)
        digest, is_whole = _digest(name), name == member.uri
        if is_whole and self._given.get(digest):
            return None
        if not is_whole:
            address = _digest(member.uri)
            if address in self._with_secrets:
                return None
            self._with_secrets.add(address)
        is_new = digest not in self._given
        self._given[digest] = is_whole or self._given.get(digest, False)
        if is_new:
            return member
        return self._numbered(member, digest) if protocol_of(member.uri) in WEB else None

    def _numbered(self, member: Member, digest: bytes) -> Member:
        """The object with the first number that makes its identity new."""
        mark = "&" if "#" in member.uri else "#"
        while True:
            number = self._next.get(digest, 2)
            self._next[digest] = number + 1
            numbered = replace(member, uri=f"{member.uri}{mark}~{number}")
            own = _digest(identity(numbered.uri))
            if own not in self._given:
                self._given[own] = False
                return numbered


class _Lookup:
    """Looks at the objects of a list. `urls` yields its addresses, from the first on each time."""

    def __init__(self, urls: Callable[[], Iterator[str]], remote_list: bool):
        self._urls, self._remote_list = urls, remote_list
        self._hosts = hosts_of_environment()
        self._lock = threading.Lock()
        self._knows_stores = False

    def member_unless_repeated(self, marked: tuple[str, bool, Said]) -> Member | str:
        """An object; its address if it is repeated, and was looked at before."""
        url, is_repeated, _ = marked
        return url if is_repeated else self.member(url)

    def member(self, url: str) -> Member:
        """An object. One that cannot be looked at is planned; its row will say why."""
        if not self._may_name(url):
            return Member(readable_name(url), NOT_ALLOWED, -1)
        url = _of_web_in_utf8(url) if protocol_of(url) in WEB else _existing_file(url)
        try:
            fs, path = open_location(url, "listed image")
        except InputError:
            return Member(readable_name(url), UNSEEN, -1)
        details = partial(_details, fs, path)
        began = time.monotonic()
        try:
            info = ask(url, details, LOOK_SECONDS)
        except Exception as error:  # stores raise many types
            info = {}
            if is_transient(error) and not is_unknown_host(error, url):
                if self._fails_alone(url, began):
                    return replace(make_member(fs, path, {}), etag=UNREACHED)
                info = _details_of_last_store(url, details)
        return make_member(fs, path, info)

    def _may_name(self, url: str) -> bool:
        """Whether the list may name an object. Hosts of the web are checked when they are asked."""
        if is_local(url):
            return not self._remote_list
        in_bucket = protocol_of(url) in PROTOCOLS and protocol_of(url) not in WEB
        return not in_bucket or self._hosts is None or self._hosts.names_bucket_of(url)

    def _fails_alone(self, url: str, began: float) -> bool:
        if concerns_object_alone(url, began):
            return True
        with self._lock:
            if not self._knows_stores:
                know(self._first_of_each_store())
                self._knows_stores = True
        return concerns_object_alone(url, began)

    def _first_of_each_store(self) -> list[str]:
        """An address of each store, up to a limit. The list is read for them."""
        found: dict[str, str] = {}
        for url in self._urls():
            if (protocol_of(url) or "file") in PROTOCOLS and self._may_name(url):
                found.setdefault(store_of(url), url)
                if len(found) > OTHERS:
                    break
        return list(found.values())


def _details(fs: AbstractFileSystem, path: str) -> dict[str, object]:
    if "http" in fs.protocol:
        found: dict[str, object] = retry(fs.look, path, LOOK_SECONDS)
        return found
    return object_info(fs, path)


def _details_of_last_store(url: str, details: Callable[[], dict[str, object]]) -> dict[str, object]:
    """The details of an object while no store answers: this one is waited for.

    Raises StorageUnavailable if it does not come back.
    """
    try:
        return ask(url, details, insist=True)
    except Exception as error:  # stores raise many types
        if not is_transient(error):
            return {}
        raise StorageUnavailable(
            f"the listed image {describe_error(error, url)}. Run the same command again when it "
            "can, or take the address out of the list"
        ) from error


def absolute_url(name: str, folder: str) -> str:
    """A name of a list as a URL or an absolute path. Relative names are below the URL `folder`.

    `..` in a name never leaves the server or the bucket of a remote list. The user and password of
    a name without a protocol (`//user:password@host/a.jpg`) are left out, as of all names.
    """
    name = _USER.sub("//", _OTHER_FORMS.sub("file://", name))
    if protocol_of(name) is not None:
        return name
    path = posixpath.normpath(name)
    if path.startswith("/"):
        return path
    if not is_local(folder):
        while path == ".." or path.startswith("../"):
            above = folder.rsplit("/", 1)[0]
            folder = folder if above.endswith("/") else above  # s3://bucket is the top
            path = path[3:]
    return join(folder, path)


def _of_web_in_utf8(url: str) -> str:
    """A web address with its bytes that are not UTF-8 percent-encoded, as they are sent."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", url)


def _existing_file(url: str) -> str:
    """A `file://` URL as it is, or without percent-encoding if only a file of that name exists."""
    if protocol_of(url) != "file" or "%" not in url:
        return url
    path = url.partition("://")[2]
    decoded = unquote(path, errors="surrogateescape")
    is_encoded = not os.path.lexists(path) and os.path.lexists(decoded)
    return f"file://{decoded}" if is_encoded else url
