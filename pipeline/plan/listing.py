"""The listing of INPUT, and the kind of each object.

The kind follows from the name, and no object is opened here. Only where INPUT is a single file is
it opened, because it may be a list of URLs.
"""

import posixpath
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.formats.hidden import is_hidden
from pipeline.formats.image_names import IMAGE_SUFFIXES, is_image, needs_package
from pipeline.formats.members import make_member
from pipeline.formats.parquet import PARQUET_SUFFIXES
from pipeline.formats.tars import TAR_SUFFIXES
from pipeline.plan.carry_choice import CarryChoice
from pipeline.plan.lists import is_list, read_url_list
from pipeline.plan.walk import walk
from pipeline.schema import Member
from pipeline.storage.files import InputError, object_info, open_location, uri
from pipeline.storage.protocols import WEB, protocol_of
from pipeline.storage.urls import mask

READ_SUFFIXES = frozenset(end for end in IMAGE_SUFFIXES if needs_package(f"a{end}") is None)
# Other files that may hold images, which nothing here opens.
CONTAINER_SUFFIXES = (
    ".zip", ".7z", ".rar", ".tar.lz4", ".tar.lzma", ".arrow", ".feather", ".orc", ".avro", ".lance",
    ".tfrecord", ".tfrecords", ".rec", ".beton", ".h5", ".hdf5", ".npz", ".lmdb", ".mdb", ".pdf",
)  # fmt: skip
_KINDS = {"images": "files", "tar": "tar", "parquet": "parquet"}  # of shards, by --format
FORMATS = ("auto", *_KINDS, "urls")
LONGEST_EXTENSION = 10  # characters; what is longer belongs to the name
TEMPORARY = "_temporary"  # the folder of what Hadoop's and Spark's jobs have not committed
# What Hadoop's file systems write in place of a folder.
FOLDER_MARKER = "_$folder$"

UNNAMED = "unnamed"  # the kind of a file without an extension, until contents.py looks into it
# Reasons why an object is left out.
NO_IMAGE = "files that are no images"
NO_IMAGE_COLUMN = "Parquet files without a column of images"
CONTAINER = "archives and tables of kinds that are not read, such as .zip and .arrow"
NO_PACKAGE = "images that need another package: pip install '.[heif,jxl]'"
OTHER_FORMAT = "files of other formats than --format says"
HIDDEN = "files with hidden names or in hidden folders"
UNCOMMITTED = "files that a job of Hadoop or Spark has not committed"
MARKER = "markers of folders"
LINKED_FOLDER = "links to folders that lead in circles"
LOST_FILES = "folders lost+found that only root may read"
LONG_PATH = "folders whose paths are longer than the system allows"
SPECIAL = "pipes, sockets and devices"
OTHER_OUTPUT = "tables and documents of another OUTPUT"
WITHIN_OUTPUT = "images and archives that lie in OUTPUT"
REPEATED = "entries of the list that name an object again"
LEFT_OUT = (
    NO_IMAGE,
    NO_IMAGE_COLUMN,
    CONTAINER,
    NO_PACKAGE,
    OTHER_FORMAT,
    HIDDEN,
    UNCOMMITTED,
    MARKER,
    LINKED_FOLDER,
    LOST_FILES,
    LONG_PATH,
    SPECIAL,
    OTHER_OUTPUT,
    WITHIN_OUTPUT,
    REPEATED,
)

ListedObject = tuple[Member, str]  # an object and its kind, or the reason why it is left out


def list_objects(
    input_url: str,
    format: str,
    leave_out: str | None = None,
    is_of_output: Callable[[str], bool] = lambda _: False,
    choice: CarryChoice | None = None,
) -> Iterator[ListedObject]:
    """Yield every object under INPUT with its kind, or with the reason why it is left out.

    They are sorted by name. If INPUT is a list of URLs, the objects that it names follow in its
    order. `leave_out` is a URL whose objects are not input, because OUTPUT may be a folder of
    INPUT. Images and archives there are left out with a reason, and OUTPUT's own files without.
    `is_of_output` says of each path below INPUT, in the order of names, whether it is that of a
    file of another OUTPUT. `choice` is asked which columns of a list are carried along.

    Raises InputError if a Parquet list of URLs has no column of URLs, if INPUT lies in OUTPUT, or
    if it is a folder and --format says that it is a list.
    """
    fs, root = open_location(input_url, "INPUT")
    info = object_info(fs, root)
    if info["type"] == "file":
        if format == "urls" or (format == "auto" and is_list(fs, root)):
            for member, is_repeated in read_url_list(fs, root, choice):
                kind = kind_of(member.uri, "auto", listed=True)
                yield member, REPEATED if is_repeated else kind
        else:
            member = make_member(fs, root, info)
            kind = kind_of(member.uri, "auto") if format == "auto" else _KINDS[format]
            yield member, "files" if kind == UNNAMED else kind
        return
    if format == "urls":
        raise InputError(f"--format urls: INPUT {mask(input_url)} is a folder: name the list in it")
    out_fs, out = open_location(leave_out, "OUTPUT") if leave_out else (fs, None)
    hidden = f"{uri(out_fs, out).rstrip('/')}/" if out else None
    if hidden and f"{uri(fs, root).rstrip('/')}/".startswith(hidden):
        raise InputError(
            f"INPUT {mask(input_url)} lies in OUTPUT, whose files are not input: choose another "
            "OUTPUT. It may be a folder of INPUT"
        )
    for info in walk(fs, root):
        member = make_member(fs, info["name"], info)
        if hidden is None or not member.uri.startswith(hidden):
            below = info["name"][len(root) :]
            if is_of_output(below):
                yield member, OTHER_OUTPUT
                continue
            yield member, _reason_to_leave_out(below, info) or kind_of(member.uri, format)
        elif kind_of(member.uri, "auto") in ("files", "tar"):  # OUTPUT's own files are neither
            yield member, WITHIN_OUTPUT


def _reason_to_leave_out(below: str, info: dict[str, Any]) -> str | None:
    """Why an entry of `walk` is left out, whatever its kind. `below` is its path below INPUT."""
    if is_hidden(below):
        return HIDDEN
    if TEMPORARY in below.split("/")[:-1]:
        return UNCOMMITTED
    if (info.get("size") == 0 and below.endswith("/")) or below.endswith(FOLDER_MARKER):
        return MARKER
    if info["type"] == "directory":
        if info.get("forbidden"):
            return LOST_FILES
        return LINKED_FOLDER if info.get("islink") else LONG_PATH
    return None if info["type"] == "file" else SPECIAL


def kind_of(name: str, format: str, listed: bool = False) -> str:
    """The kind of shard of an object ("files", "tar", "parquet"), or why it is left out.

    A file without an extension is UNNAMED. An object that a list names counts as an image whatever
    its name, and its row says so if it is none. If `format` is not "auto", objects of the other
    kinds are left out, and those whose names do not tell are of this kind.
    """
    kind = _kind_by_name(name, listed)
    if format == "auto":
        return kind
    wanted = _KINDS[format]
    if kind in (NO_IMAGE, UNNAMED):
        return wanted
    of_format = "files" if kind == NO_PACKAGE else kind
    return kind if of_format in (wanted, CONTAINER) else OTHER_FORMAT


def _kind_by_name(name: str, listed: bool) -> str:
    if name[name.rfind(".") :].lower() in READ_SUFFIXES and "?" not in name and "#" not in name:
        return "files"  # nearly all names of a lake; the rest takes three times as long
    path = name
    if protocol_of(name) in WEB:
        path = name.partition("#")[0].partition("?")[0].split("://", 1)[1].partition("/")[2]
    file_name = path.rsplit("/", 1)[-1]
    for end in (file_name, file_name.partition("?")[0]):  # `a.tar?versionId=3` is a name, too
        if end.lower().endswith(TAR_SUFFIXES):
            return "tar"
        if end.lower().endswith(PARQUET_SUFFIXES):
            return "parquet"
    if listed:
        return "files"
    if is_image(file_name):
        return NO_PACKAGE if needs_package(file_name) else "files"
    if file_name.lower().endswith(CONTAINER_SUFFIXES):
        return CONTAINER
    return NO_IMAGE if _has_extension(file_name) else UNNAMED


def _has_extension(name: str) -> bool:
    """Whether a name has an extension, by which it is no image if `is_image` says so.

    An extension is a few letters and digits, and not digits alone: `IMG 2024.05.01` has none.
    """
    suffix = posixpath.splitext(name.rstrip())[1][1:]
    return suffix.isalnum() and not suffix.isdigit() and len(suffix) <= LONGEST_EXTENSION
