"""Files that users name must not replace tables or commits of an OUTPUT."""

import os
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from jobs.output.paths import RUNS, STAGING, TABLES
from pipeline.storage.errors import InputError
from pipeline.storage.files import join, open_location, uri
from pipeline.storage.urls import mask


def refuse_within_output(output: str, file: str | Path, what: str) -> None:
    """Raise InputError if the path or URL `file`, which `what` names, is one of OUTPUT's own."""
    place = _resolved(str(file))
    for folder in (_resolved(join(output, name)) for name in (RUNS, STAGING, *TABLES)):
        if place == folder or place.startswith(f"{folder}/"):
            raise InputError(
                f"{what} {mask(str(file))} lies among the tables and commits of {mask(output)}: "
                "give another place"
            )


def _resolved(url: str) -> str:
    """The URL of a location; of a local one that to which links lead."""
    fs, path = open_location(url, "file")
    return uri(fs, os.path.realpath(path) if isinstance(fs, LocalFileSystem) else path)
