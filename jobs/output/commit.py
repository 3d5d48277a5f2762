"""The end of every run, labelled or imported: its record and its plan, then its commit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.output import paths
from jobs.output.manifest import Manifest, make_manifest
from jobs.output.records import write_document
from jobs.output.writing import OutputWriter
from pipeline.plan.shards import Shards
from pipeline.stages.publish import PartFile, PublishTarget
from pipeline.storage.files import join


@dataclass(frozen=True)
class FinishedRun:
    """A run whose tables are written."""

    target: PublishTarget
    source: str  # canonical INPUT
    shards: Shards
    files: list[PartFile]
    counts: dict[str, int]  # images by status
    report: dict[str, Any]
    replaces: Sequence[str] = ()  # runs that count no more

    def manifest(self, token: str) -> Manifest:
        """Its manifest by the writer of that token, written or not."""
        plan = paths.plan(self.target.run_id, token)
        return make_manifest(self.target, plan, self.source, self.files, self.counts, self.replaces)


def commit_run(run: FinishedRun, writer: OutputWriter) -> None:
    """Let the run count. LockLost, and it does not, where another has OUTPUT by now."""
    output, run_id = run.target.output, run.target.run_id
    manifest = run.manifest(writer.token)
    write_document(output, run_id, "report.json", run.report)
    run.shards.without_secrets().write_to(join(output, manifest["plan"]))
    writer.commit(manifest, run.replaces)
    writer.drop_staging(run_id)
