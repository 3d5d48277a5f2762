"""The last step of every run, labelled or imported: write report and plan, then commit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.output import paths
from jobs.output.manifest import Manifest, make_manifest
from jobs.output.output_writer import OutputWriter
from jobs.output.run_documents import write_document
from pipeline.plan.shards import Shards
from pipeline.stages.publish import PartFile, PublishTarget
from pipeline.storage.files import join


@dataclass(frozen=True)
class FinishedRun:
    """A run whose tables are written and that is not committed yet."""

    target: PublishTarget
    source: str  # canonical URL of INPUT
    shards: Shards
    files: list[PartFile]
    counts: dict[str, int]  # number of images by status
    report: dict[str, Any]
    replaces: Sequence[str] = ()  # ids of the runs that this run replaces

    def manifest(self, token: str) -> Manifest:
        """The manifest of this run, as the writer with `token` names its files. Writes nothing."""
        plan = paths.plan(self.target.run_id, token)
        return make_manifest(
            self.target,
            plan,
            self.source,
            self.files,
            self.counts,
            self.replaces,
            carry=self.shards.carry,
        )


def commit_run(run: FinishedRun, writer: OutputWriter) -> None:
    """Write the report and the plan, commit the run, and delete its staging.

    Raises LockLost, and commits nothing, if another command has taken OUTPUT over.
    """
    output, run_id = run.target.output, run.target.run_id
    manifest = run.manifest(writer.token)
    write_document(output, run_id, "report.json", run.report)
    run.shards.without_carried().without_secrets().write_to(join(output, manifest["plan"]))
    writer.commit(manifest, run.replaces)
    writer.drop_staging(run_id)
