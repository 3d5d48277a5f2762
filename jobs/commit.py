"""The end of every run, labelled or imported: its record, then its manifest, then tidying up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.run_plan import staging_url
from jobs.run_record import write_document
from pipeline.lock import OutputLock
from pipeline.publish import (
    PartFile,
    PublishTarget,
    manifest_of,
    remove_tables,
    write_manifest,
)
from pipeline.shards import Shards
from pipeline.storage import join, open_location, remove_tree


@dataclass(frozen=True)
class Finished:
    """A run whose tables are written."""

    target: PublishTarget
    source: str  # canonical INPUT
    shards: Shards
    files: list[PartFile]
    counts: dict[str, int]  # images by status
    report: dict[str, Any]
    replaces: Sequence[str] = ()  # runs that count no more

    def manifest(self) -> dict[str, Any]:
        """Its manifest, written or not."""
        return manifest_of(self.target, self.source, self.files, self.counts, self.replaces)


def commit(run: Finished, lock: OutputLock) -> None:
    """Let the run count. LockLost, and it does not, where another holds the lock by now."""
    output, run_id = run.target.output, run.target.run_id
    write_document(output, run_id, "report.json", run.report)
    run.shards.without_secrets().put(join(output, "_runs", run_id, "plan.parquet"))
    lock.check()
    write_manifest(output, run.manifest())
    remove_tables(output, run.replaces)
    fs, path = open_location(staging_url(output, run_id), "OUTPUT")
    remove_tree(fs, path)
