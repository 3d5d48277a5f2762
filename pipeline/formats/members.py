"""The objects of a plan: how one is described, and how it is opened."""

from fsspec import AbstractFileSystem

from pipeline.schema import NOT_ALLOWED, Member
from pipeline.storage.files import InputError, etag_of, open_location, uri
from pipeline.storage.urls import mask


def open_member(member: Member, what: str) -> tuple[AbstractFileSystem, str]:
    """The file system and the path of an object of a plan. `what` names the object in errors.

    Raises InputError for an address that is bad or that its list may not name.
    """
    if member.etag == NOT_ALLOWED:
        raise InputError(
            f"{what} {mask(member.uri)} is a local file, and the list that names it is not: put "
            "the list on this machine, or the file where the list is"
        )
    return open_location(member.uri, what)


def make_member(fs: AbstractFileSystem, path: str, info: dict[str, object]) -> Member:
    """The object at `path` with its details."""
    size = info.get("size")
    name = readable_name(uri(fs, path))
    return Member(name, etag_of(info), -1 if size is None else int(str(size)))


def readable_name(name: str) -> str:
    """`name` with bytes that are not UTF-8 escaped (`\\xe9`), because tables hold only UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
