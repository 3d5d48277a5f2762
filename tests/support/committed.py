"""Commits runs that are made by hand through the log of commits, without waiting for a lock."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.output import paths
from jobs.output.catalog import read_catalog
from jobs.output.log_writer import LogWriter
from jobs.output.manifest import Manifest, make_manifest
from jobs.output.store import OutputStore
from pipeline.carry.columns import NO_CARRY, Carry
from pipeline.stages.publish import PartFile, PublishTarget

TOKEN = "f" * 32  # the writer's token in the names of all files that are made by hand


def make_target(
    output: str | Path,
    run_id: str,
    labels: Sequence[str] = (),
    staging: str = "",
    model: str = "made-by-hand",
    fingerprint: str = "f00d",
) -> PublishTarget:
    return PublishTarget(
        str(output),
        run_id,
        paths.part_template(run_id, TOKEN),
        staging,
        model,
        fingerprint,
        tuple(labels),
    )


def commit_run(
    target: PublishTarget,
    source: str,
    files: list[PartFile],
    counts: dict[str, int],
    replaces: Sequence[str] = (),
    carry: Carry = NO_CARRY,
) -> Manifest:
    """Commit a run whose plan is plan.parquet, so that readers see it."""
    plan = f"{paths.run_folder(target.run_id)}/plan.parquet"
    manifest = make_manifest(target, plan, source, files, counts, replaces, carry=carry)
    writer = LogWriter(OutputStore(target.output))
    writer.token = TOKEN
    writer.first = replace(writer.first, token=TOKEN)
    writer.fence()
    writer.commit(manifest, replaces)
    return manifest


def labelling_runs(output: str) -> list[Manifest]:
    return read_catalog(output).labelling_runs()
