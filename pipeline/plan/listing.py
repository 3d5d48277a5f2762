"""The listing of INPUT, and the kind of each object.

The kind follows from the name alone, and no object is opened. Only where INPUT is a single file is
it opened, because it may be a list of URLs.
"""

import posixpath
from collections.abc import Iterator
from typing import Any

from pipeline.formats.image_names import IMAGE_SUFFIXES, is_image
from pipeline.formats.members import make_member
from pipeline.plan.lists import is_list, read_url_list
from pipeline.plan.walk import walk
from pipeline.schema import Member
from pipeline.storage.files import object_info, open_location, uri
from pipeline.storage.protocols import protocol_of

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
FORMATS = ("auto", "images", "tar", "parquet", "urls")

# Reasons why an object is left out.
NO_IMAGE = "files that are no images"
HIDDEN = "files with hidden names or in hidden folders"
LINKED_FOLDER = "links to folders, which are not followed"
LONG_PATH = "folders whose paths are longer than the system allows"
SPECIAL = "pipes, sockets and devices"
LEFT_OUT = (NO_IMAGE, HIDDEN, LINKED_FOLDER, LONG_PATH, SPECIAL)

ListedObject = tuple[Member, str]  # an object and its kind, or the reason why it is left out


def list_objects(
    input_url: str, format: str, leave_out: str | None = None
) -> Iterator[ListedObject]:
    """Yield every object under INPUT with its kind, or with the reason why it is left out.

    They are sorted by name. If INPUT is a list of URLs, the objects that it names follow in its
    order. `leave_out` is a URL whose objects are not input, because OUTPUT may be a folder of
    INPUT.

    Raises InputError if a Parquet list of URLs has no column of URLs.
    """
    fs, root = open_location(input_url, "INPUT")
    info = object_info(fs, root)
    if info["type"] == "file":
        if format == "urls" or (format == "auto" and is_list(fs, root)):
            for member in read_url_list(fs, root):
                yield member, kind_of(member.uri, "auto", listed=True)
        else:
            member = make_member(fs, root, info)
            yield member, kind_of(member.uri, format)
        return
    out_fs, out = open_location(leave_out, "OUTPUT") if leave_out else (fs, None)
    hidden = f"{uri(out_fs, out).rstrip('/')}/" if out else None
    for info in walk(fs, root):
        path = info["name"]
        if info.get("size") == 0 and path.endswith("/"):
            continue  # the marker of an empty folder in an object store
        member = make_member(fs, path, info)
        if hidden is None or not member.uri.startswith(hidden):
            reason = _reason_to_leave_out(path[len(root) :], info)
            yield member, reason or kind_of(member.uri, format)


def _reason_to_leave_out(below: str, info: dict[str, Any]) -> str | None:
    """Why an entry of `walk` is left out, whatever its kind. `below` is its path below INPUT."""
    if not _is_visible(below):
        return HIDDEN
    if info["type"] == "directory":
        return LINKED_FOLDER if info.get("islink") else LONG_PATH
    return None if info["type"] == "file" else SPECIAL


def kind_of(name: str, format: str, listed: bool = False) -> str:
    """The kind of shard of an object ("files", "tar", "parquet"), or NO_IMAGE.

    A file without an extension counts as an image. An object that a list names also counts as an
    image. If it is not an image, its row says so.
    """
    if format != "auto":
        return {"images": "files", "urls": "files"}.get(format, format)
    path = name
    if protocol_of(name) in ("http", "https"):
        path = name.partition("#")[0].partition("?")[0].split("://", 1)[1].partition("/")[2]
    lower = path.rsplit("/", 1)[-1].lower()
    if lower.endswith(TAR_SUFFIXES):
        return "tar"
    if lower.endswith(".parquet"):
        return "parquet"
    suffix = posixpath.splitext(lower)[1]
    return "files" if listed or suffix in IMAGE_SUFFIXES or not suffix else NO_IMAGE


def _is_visible(below: str) -> bool:
    """Whether no part of a path is hidden.

    Images whose names start with an underscore are visible: cameras write `_DSC0001.JPG`.
    """
    *folders, name = below.strip("/").split("/")
    if any(folder.startswith((".", "_")) for folder in folders):
        return False
    return not name.startswith(".") and (not name.startswith("_") or is_image(name))
