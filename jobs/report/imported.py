"""What reports of imported detections need: which runs these are, and where their images lie."""

import re
from dataclasses import dataclass
from typing import Any

from jobs.output.run_documents import read_document
from pipeline.formats.parquet import PARQUET_SUFFIXES
from pipeline.formats.tars import TAR_SUFFIXES
from pipeline.schema import UNSEEN, Member, Shard
from pipeline.storage.protocols import is_local

# Patterns that DuckDB reads too.
_ADDRESS, _LOCAL = r"^[A-Za-z][A-Za-z0-9+.\-]*://", r"^[Ff][Ii][Ll][Ee]://"
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
    """Where the image names of an import come from."""

    has_folder: bool  # whether --images named the folder of the images
    is_annotated_here: bool  # whether the annotation file lies on this machine

    @property
    def _may_be_local(self) -> bool:
        """Whether names may be files of this machine, by the rule for lists of `label`."""
        return self.has_folder or self.is_annotated_here

    def condition(self) -> str:
        """Return the SQL condition on `uri` for images that can be fetched for a page."""
        local = "" if self._may_be_local else f" AND NOT regexp_matches(uri, '{_LOCAL}')"
        return (
            f"regexp_matches(uri, '{_ADDRESS}') AND NOT regexp_matches(uri, '{_ARCHIVED}'){local}"
        )

    def shard(self, uri: str) -> Shard | None:
        """Return a shard of one image that can be fetched; None for other images."""
        if not re.search(_ADDRESS, uri) or re.search(_ARCHIVED, uri):
            return None
        if re.search(_LOCAL, uri) and not self._may_be_local:
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
    return Imported(bool(options.get("images")), is_local(str(options.get("annotations", ""))))
