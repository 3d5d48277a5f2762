"""Files that users name must not replace tables, commits or images of an OUTPUT."""

import os
from collections.abc import Sequence
from pathlib import Path

import duckdb
from fsspec.implementations.local import LocalFileSystem

from jobs.output.paths import OLD_LOCK, RUNS, STAGING, TABLES
from pipeline.formats.members import open_member
from pipeline.schema import UNSEEN, Member
from pipeline.storage.errors import InputError
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.files import join, open_location, uri
from pipeline.storage.protocols import protocol_of
from pipeline.storage.urls import mask, printable

ROWS_AT_ONCE = 10_000


def refuse_within_output(output: str, file: str | Path, what: str) -> None:
    """Raise InputError if the path or URL `file`, which `what` names, is one of OUTPUT's own.

    InputError too if it is OUTPUT itself, or a folder that holds it.
    """
    place, home = _resolved(str(file)), _resolved(output)
    if _is_within(home, place):
        raise InputError(
            f"{what} {mask(str(file))} is the OUTPUT {mask(output)}, or holds it: give another "
            "place"
        )
    for own in (_resolved(join(output, name)) for name in (RUNS, STAGING, OLD_LOCK, *TABLES)):
        if _is_within(place, own):
            raise InputError(
                f"{what} {mask(str(file))} lies among the tables and commits of {mask(output)}: "
                "give another place"
            )


def refuse_images_within(
    connection: duckdb.DuckDBPyConnection, places: Sequence[str], what: str
) -> None:
    """Raise InputError if an image of OUTPUT lies at one of `places`, which will be replaced.

    `places` are paths or URLs of what `what` names, and `connection` has the views of OUTPUT.
    """
    folders = {_resolved(place): place for place in places if _exists(place)}
    if not folders:  # resolving local images takes a minute for a million
        return
    cursor = connection.execute("SELECT DISTINCT uri FROM latest_images")
    while rows := cursor.fetchmany(ROWS_AT_ONCE):
        for (image,) in rows:
            lies = _resolved_image(image)
            for folder, place in folders.items():
                if _is_within(lies, folder):
                    raise InputError(
                        f"{what}: the image {printable(mask(image))} of OUTPUT lies in "
                        f"{mask(place)}, which --overwrite would delete: give another place"
                    )


def _resolved_image(image: str) -> str:
    """The URL of an image of a table; of a local one that to which links lead."""
    if protocol_of(image) != "file":  # a path without a protocol is a mere name of an import
        return image
    try:
        fs, path = open_member(Member(image, UNSEEN, -1), "image")
    except InputError:  # no valid address, so that no file is there
        return image
    return uri(fs, os.path.realpath(path))


def _exists(url: str) -> bool:
    fs, path = open_location(url, "file")
    with explain_errors("file", url):
        return bool(fs.lexists(path))


def _is_within(url: str, folder: str) -> bool:
    return url == folder or url.startswith(f"{folder.rstrip('/')}/")


def _resolved(url: str) -> str:
    """The URL of a location; of a local one that to which links lead."""
    fs, path = open_location(url, "file")
    return uri(fs, os.path.realpath(path) if isinstance(fs, LocalFileSystem) else path)
