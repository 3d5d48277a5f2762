"""Unfinished runs of killed commands. The same command resumes them, --relabel drops them."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from jobs.label.log.lines import print_line
from jobs.label.planning import PlanRequest, Run, plan_url
from jobs.label.run_record import (
    is_numbered_otherwise,
    is_same_work,
    read_run_record,
    recorded_command,
    recorded_computation,
    unusable_run_error,
)
from jobs.label.unpublished_archives import CONTINUES
from jobs.output import paths
from jobs.output.catalog import Catalog
from jobs.output.known_objects import LabelRequest
from jobs.output.output_writer import OutputWriter, staged_runs
from jobs.output.store import OutputStore
from pipeline.plan.listing import LEFT_OUT, list_objects
from pipeline.plan.shards import Shards, read_plan_tables, write_shards
from pipeline.storage.errors import DamagedFile, InputError
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.urls import identity, mask


class Fate(Enum):
    """What becomes of a run that a killed command left behind."""

    COMMITTED = auto()  # it was committed already: its staging is deleted
    FINISHED = auto()  # so it was, by the same command, for which nothing is left to do
    OVERLOOKED = auto()  # another run has done its work: its staging is deleted
    RESUMED = auto()  # the same command finishes it
    DROPPED = auto()  # --relabel deletes its staging
    # It continues a run that was not committed, and that holds all of its work: its staging is
    # deleted.
    PREMATURE = auto()


def take_up_unfinished_run(
    writer: OutputWriter, wanted: PlanRequest, labels: LabelRequest
) -> Run | None:
    """Resume the run that a killed command left behind, if it was the same command as this one.

    Its plan is written again, in the format of this version. The run has no shards if it was
    committed already. Staging of committed runs is deleted. An unfinished run of another command
    is dropped with --relabel; without --relabel it raises InputError.
    """
    _drop_premature_runs(writer)
    for run_id in writer.staged:
        record = read_run_record(writer.output, run_id)
        fate = _fate(writer.catalog, run_id, record, wanted, labels)
        retries = _retries_failed(record)
        if fate is not Fate.RESUMED:
            writer.drop_staging(run_id)
            if fate is Fate.FINISHED:
                return Run(run_id, write_shards([]), retries_failed=retries)
            continue
        shards = _read_planned_shards(wanted, run_id)
        if is_numbered_otherwise(record, shards):
            print_line(
                f"the unfinished run {run_id} is of a version that read archives otherwise: "
                "its images are planned and labelled anew"
            )
            writer.drop_staging(run_id)
            continue
        writer.begin_writing()
        shards.write_to(plan_url(writer.output, run_id))
        return Run(
            run_id,
            shards,
            recorded_computation(record, "device"),
            recorded_computation(record, "precision"),
            (record.get("computation") or {}).get("count"),  # versions before 0.2 had none
            retries,
            record.get("left_out", {}),  # versions before 0.2 did not record it
            canaries=wanted.canaries,
        )
    return None


def _drop_premature_runs(writer: OutputWriter) -> None:
    """Delete the staging of runs that continue a run which is unfinished itself.

    That run is resumed first, and may end with another rest.
    """
    for run_id in list(writer.staged):
        if _is_premature(writer.catalog, read_run_record(writer.output, run_id)):
            writer.drop_staging(run_id)
            writer.staged.remove(run_id)


def _is_premature(catalog: Catalog, record: Mapping[str, Any]) -> bool:
    return record.get(CONTINUES) is not None and not catalog.knows(record[CONTINUES])


def unfinished_runs_as_lines(
    catalog: Catalog, wanted: PlanRequest, labels: LabelRequest
) -> list[str]:
    """What `take_up_unfinished_run` would do, for --dry-run. Raises the errors that it would."""
    with explain_errors("OUTPUT", wanted.output):
        staged = OutputStore(wanted.output).names(paths.STAGING)
    lines: list[str] = []
    for run_id in staged_runs(staged, catalog):
        fate = _fate(catalog, run_id, read_run_record(wanted.output, run_id), wanted, labels)
        if fate is Fate.RESUMED:
            return [*lines, f"run {run_id} of a command that was cut off is finished first"]
        if fate is Fate.DROPPED:
            lines.append(f"run {run_id} of a command that was cut off is dropped")
    return lines


def _fate(
    catalog: Catalog,
    run_id: str,
    record: Mapping[str, Any],
    wanted: PlanRequest,
    labels: LabelRequest,
) -> Fate:
    """What becomes of a staged run. Raises InputError for one of another command."""
    same = is_same_work(record, wanted, labels)
    if _is_premature(catalog, record):
        return Fate.PREMATURE
    if catalog.knows(run_id):  # the command was killed after the commit
        once = labels.relabel or wanted.limit is not None or _retries_failed(record)
        return Fate.FINISHED if same and once else Fate.COMMITTED
    if same:
        return Fate.OVERLOOKED if _was_overlooked(catalog, run_id, record) else Fate.RESUMED
    if not labels.relabel:
        raise InputError(
            f"{mask(wanted.output)} holds an unfinished run, `label {recorded_command(record)}`: "
            "run that command again to finish it, or pass --relabel to drop it"
        )
    return Fate.DROPPED


def _retries_failed(record: Mapping[str, Any]) -> bool:
    return bool(record["options"].get("retry_failed", False))


def _was_overlooked(catalog: Catalog, run_id: str, record: Mapping[str, Any]) -> bool:
    """Whether another run has labelled what this unfinished run was to label, since its plan.

    A run is planned only when no other is unfinished. So a listing of OUTPUT lacked one of the two
    when the other was planned.
    """
    committed = list(catalog.state.runs)  # in the order of their commits
    before = record.get("committed_before")  # versions before 0.2 did not record it
    later = committed[before:] if before is not None else [one for one in committed if one > run_id]
    source, own = record["options"]["input"], record.get(CONTINUES)
    return any(
        run["run_id"] in later and run["run_id"] != own and run["input"] == source
        for run in catalog.labelling_runs()
    )


def _read_planned_shards(wanted: PlanRequest, run_id: str) -> Shards:
    """Read the shards of an unfinished run, in the format of this version.

    URLs that carry secrets get the secrets that INPUT has now, because the old ones expire. Raises
    DamagedOutput if the plan is missing or damaged.
    """
    try:
        shards = write_shards(read_plan_tables(plan_url(wanted.output, run_id), carried=True))
    except DamagedFile as error:
        raise unusable_run_error(run_id, paths.plan_under_way(run_id)) from error
    if shards.has_secrets:
        with explain_errors("INPUT", wanted.input):
            listed = list_objects(wanted.input, wanted.format, wanted.output)
            now = {
                identity(member.uri): member.uri for member, kind in listed if kind not in LEFT_OUT
            }
        shards = shards.with_uris(lambda uri: now.get(identity(uri), uri))
    return shards
