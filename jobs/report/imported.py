"""What reports of imported detections need: which runs these are, and where their images lie."""

import re
from dataclasses import dataclass
from typing import Any

from jobs.output.run_documents import read_document
from pipeline.formats.parquet import PARQUET_SUFFIXES
from pipeline.formats.tars import TAR_SUFFIXES
from pipeline.schema import UNSEEN, Member, Shard

# Patterns that DuckDB reads too.
_STEPS = r"[/\\](\.|%2[Ee]){1,2}([/\\?#]|$)"  # `..` and `.`, which may lead out of a folder
_ARCHIVED = rf"(?i)({'|'.join(map(re.escape, (*TAR_SUFFIXES, *PARQUET_SUFFIXES)))})#"
# Fields of report.json that say nothing of an import: no image was read and no model computed.
MADE_UP = (
    "startup_seconds",
    "images_per_second",
    "images_per_second_steady",
    "stage_use",
    "limiting_stage",
    "device_use",
    "timeline",
    "cpu_use",
)


@dataclass(frozen=True)
class Imported:
    """Where the images of an import may be read from.

    The names of images come from an annotation file, which anybody may have written. So only what
    lies below the folder that the user named is opened, wherever else a name leads.
    """

    folder: str | None  # the URL that --images named

    def condition(self) -> str:
        """Return the SQL condition on `uri` for images that can be fetched for a page."""
        if self.folder is None:
            return "false"
        below = f"{self.folder}/".replace("'", "''")
        return (
            f"starts_with(uri, '{below}') AND NOT regexp_matches(uri, '{_STEPS}') "
            f"AND NOT regexp_matches(uri, '{_ARCHIVED}')"
        )

    def shard(self, uri: str) -> Shard | None:
        """Return a shard of one image that can be fetched; None for other images."""
        if self.folder is None or not uri.startswith(f"{self.folder}/"):
            return None
        if re.search(_STEPS, uri) or re.search(_ARCHIVED, uri):
            return None
        return Shard(uri, "files", (Member(uri, UNSEEN, -1),))


def read_import(output: str, run_id: str) -> Imported | None:
    """Read from run.json how a run was imported; None for a run of `label`.

    Raises DamagedOutput if run.json is damaged. A run without one is of an old `label`.
    """
    try:
        record = read_document(output, run_id, "run.json")
    except FileNotFoundError:
        return None
    return import_of_record(record)


def import_of_record(record: dict[str, Any]) -> Imported | None:
    """Do the same as `read_import` with the content of run.json."""
    options = record.get("options") or {}
    if "detections" not in options:
        return None
    images = options.get("images")
    return Imported(str(images).rstrip("/") if images else None)
