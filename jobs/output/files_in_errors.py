"""Which file an error of DuckDB is about: one of OUTPUT's, or one that the user's SQL names."""

import re

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.output.catalog import committed_runs
from jobs.output.log import map_at_once
from jobs.output.manifest import FileOfRun
from pipeline.storage.files import join, object_info, open_location, open_object

_TABLE_FILE = re.compile(r"(?:images|detections)/run=[^/\n]+/part-[^/\n]*?\.parquet")
_BEFORE_NAMES = " '\"[(\n"


def named_file(message: str, output: str) -> str | None:
    """The file of OUTPUT that an error names, below OUTPUT. Users may have files of such names."""
    places = {join(output, ""), join(open_location(output, "OUTPUT")[1], "")}
    for found in _TABLE_FILE.finditer(message):
        # DuckDB shows a file that is missing as the pattern that we gave it.
        before = re.sub(r"\[([\[*?])\]", r"\1", message[: found.start()])
        for place in places:
            if before.endswith(place) and before[: -len(place)][-1:] in _BEFORE_NAMES:
                return found[0]
    return None


def damaged_file(output: str, whole: bool) -> str | None:
    """The first file of OUTPUT that is missing, of another size or no Parquet. None if none is.

    Some errors of DuckDB name no file, so the files are looked at: their ends, or the `whole` of
    them.
    """
    files = [file for run in committed_runs(output) for file in run["files"]]
    sound = map_at_once(lambda file: _is_sound(output, file, whole=False), files)
    for file, ends_well in zip(files, sound, strict=True):
        if not ends_well or (whole and not _is_sound(output, file, whole)):
            return file["path"]
    return None


def _is_sound(output: str, file: FileOfRun, whole: bool) -> bool:
    fs, path = open_location(join(output, file["path"]), "OUTPUT")
    try:
        if object_info(fs, path)["size"] != file["bytes"]:
            return False
        with open_object(fs, path) as content:
            parquet = pq.ParquetFile(content)
            for _ in parquet.iter_batches() if whole else ():
                pass
    except (FileNotFoundError, IsADirectoryError, pa.ArrowException):
        return False
    except OSError as error:
        if error.errno is None:  # Arrow's, for what is no Parquet
            return False
        raise
    return True
