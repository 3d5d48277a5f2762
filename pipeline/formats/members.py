"""The objects of a plan: how one is described, and how it is opened."""

import os
import re

from fsspec import AbstractFileSystem

from pipeline.schema import NOT_ALLOWED, Member
from pipeline.storage.files import InputError, open_location, uri
from pipeline.storage.image_hosts import VARIABLE, RefusedAddress
from pipeline.storage.protocols import is_local
from pipeline.storage.urls import mask
from pipeline.storage.versions import etag_of


def open_member(member: Member, what: str) -> tuple[AbstractFileSystem, str]:
    """The file system and the path of an object of a plan. `what` names the object in errors.

    Raises InputError for an address that is bad or that its list may not name.
    """
    if member.etag == NOT_ALLOWED and not is_local(member.uri):
        raise RefusedAddress(f"{what} {mask(member.uri)} is in no bucket that {VARIABLE} names")
    if member.etag == NOT_ALLOWED:
        raise InputError(
            f"{what} {mask(member.uri)} is a local file, and the list that names it is not: put "
            "the list on this machine, or the file where the list is"
        )
    fs, path = open_location(member.uri, what)
    return fs, _existing_path(path) if is_local(member.uri) else path


# In names of local files: a byte that is not UTF-8, and a backslash before what looks like one.
_ESCAPED = re.compile(r"\\x(?:[89a-f][0-9a-f]|5c(?=x))")
_LIKE_ESCAPED = re.compile(r"\\(?=x(?:[89a-f][0-9a-f]|5cx))")


def _existing_path(path: str) -> str:
    """The path of a local file whose name `make_member` made readable."""
    if "\\x" not in path:
        return path
    unescaped = _ESCAPED.sub(lambda byte: os.fsdecode(bytes.fromhex(byte.group()[2:])), path)
    # Earlier versions did not escape backslashes.
    return unescaped if os.path.lexists(unescaped) else path


def make_member(fs: AbstractFileSystem, path: str, info: dict[str, object]) -> Member:
    """The object at `path` with its details."""
    size = info.get("size")
    name = uri(fs, path)
    if is_local(name):  # two files must not get one name
        name = _LIKE_ESCAPED.sub(r"\\x5c", name)
    return Member(readable_name(name), etag_of(info), -1 if size is None else int(str(size)))


def readable_name(name: str) -> str:
    """`name` with bytes that are not UTF-8 escaped (`\\xe9`), because tables hold only UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
