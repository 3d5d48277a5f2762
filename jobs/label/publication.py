"""The publication of a run: reconcile it, write its tables, report and page, and commit it."""

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jobs.accounting.node_hours import NodeMeter, Rates
from jobs.accounting.plurals import counted
from jobs.accounting.tally import Report, Tally, near_duplicates_of, report, sorted_counts
from jobs.cluster.start import stage_workers
from jobs.label.canaries.proof import Proof
from jobs.label.execution import reason_of
from jobs.label.log.lines import print_line
from jobs.label.planning import Run
from jobs.label.unpublished_archives import stage_rest
from jobs.output import paths
from jobs.output.commit import FinishedRun, commit_run
from jobs.output.known_objects import LabelRequest
from jobs.output.output_writer import OutputWriter
from jobs.output.run_documents import read_document, write_text
from jobs.report.pictures import PictureReader, plan_of_shards
from pipeline.dataflow import Layout, publish_parts, read_back_staging
from pipeline.plan.finished import split_plan
from pipeline.plan.remaining import Staged
from pipeline.plan.shards import Shards
from pipeline.stages.publish import (
    PartFile,
    PublishTarget,
    group_into_parts,
    reconcile,
)
from pipeline.stages.staged import remove_blocks_with
from pipeline.storage.errors import CommandFailed
from pipeline.storage.files import join
from pipeline.storage.urls import mask

if TYPE_CHECKING:
    from jobs.report.page import Contents


@dataclass(frozen=True)
class Meters:
    """The measurements of a run."""

    tally: Tally
    nodes: NodeMeter
    rates: Rates


@dataclass(frozen=True)
class StagedRun:
    """A run that is to be published, with what its tables and its report say of it."""

    run: Run
    target: PublishTarget
    labels: LabelRequest
    layout: Layout
    proof: Proof | None = None
    ended: str | None = None  # the limit that ended it before all of it was labelled


@dataclass(frozen=True)
class Published:
    """What runs have added to OUTPUT."""

    images: Counter[str] = field(default_factory=Counter)  # number by status
    boxes: int = 0
    reports: tuple[Report, ...] = ()  # of each run
    files: tuple[PartFile, ...] = ()  # of the tables
    ended: str | None = None  # the limit by which the last run ended, as the user gave it
    left: int = 0  # number of objects that it left
    # Number of images that it labelled and that a later run publishes: of archives that are
    # labelled in part, or all of them if a limit came before the answers for the canaries.
    kept: int = 0
    begun: tuple[str, ...] = ()  # the addresses of the archives that are labelled in part
    not_carried: int = 0  # values that could not be carried along (carry/columns.py)
    is_stuck: bool = False  # whether it ended before it labelled anything

    def __add__(self, other: "Published") -> "Published":
        return replace(
            other,
            images=self.images + other.images,
            boxes=self.boxes + other.boxes,
            reports=self.reports + other.reports,
            files=self.files + other.files,
            not_carried=self.not_carried + other.not_carried,
        )


def publish_run(labelled: StagedRun, meters: Meters, writer: OutputWriter, page: bool) -> Published:
    """Reconcile the run, write its tables and its report, and only then commit it.

    `page` says whether to write report.html too. Of a run that is `ended`, what is finished is
    published, if anything is, and the rest is kept.

    If the run has a `proof`, raises CanaryDeviation, before it writes anything, if a detector of
    any of its blocks deviates, and CommandFailed if nothing proves some blocks. A run that is
    `ended` before all its blocks are proven publishes nothing, and keeps them for the next.
    """
    began = time.monotonic()
    run, target, labels = labelled.run, labelled.target, labelled.labels
    layout, proof, ended = labelled.layout, labelled.proof, labelled.ended
    writer.check_lock()  # a command that took a lost lock over may have finished this run
    staged = read_back_staging(target.staging, layout.nodes)
    if proof is not None:
        proof.add(staged.canaries)
        if ended is not None and not proof.is_complete():  # the block with the answers is to come
            return Published(ended=ended, left=run.shards.objects, kept=staged.images)
    part = _part_to_publish(run, staged, ended, writer)
    if not len(part.shards):
        return part.published
    run, staged = replace(run, shards=part.shards), part.staged
    planned = run.shards.names()
    reconcile(planned, staged)
    if proof is not None:
        _refuse_unproven_blocks(proof, target.staging)
    grouped = group_into_parts(planned, staged)
    pictures = PictureReader() if page else None  # it starts while the tables are written
    files = list(publish_parts(grouped, target, layout.nodes))
    counts = sorted_counts(staged.count_by_status())
    meters.tally.seconds["publish"] = time.monotonic() - began
    replaced = labels.replaced_runs(writer.catalog.committed_runs())
    done = FinishedRun(target, labels.source, run.shards, files, counts, {}, replaced)
    contents = None if pictures is None else _gather_page(done, writer.token, pictures)
    boxes = sum(f.rows for f in files if paths.table_of_part(f.path) == "detections")
    # This is the end of what the report times.
    summary = _report(run, target.output, meters, layout, counts, boxes, part.published)
    summary["near_duplicates"] = near_duplicates_of(files)
    lost = sum(file.not_carried for file in files)
    if run.shards.carry:
        summary["carried"] = {"columns": run.shards.carry.as_document(), "not_carried": lost}
    if proof is not None:
        summary["canaries"] = proof.summary()
    done = replace(done, report=dict(summary))
    if contents is not None:
        _write_page(done, contents)
    if proof is not None:
        writer.check_lock()
        proof.record(target.output, labels.fingerprint, run.run_id)
    commit_run(done, writer)
    return replace(
        part.published,
        images=Counter(counts),
        boxes=boxes,
        reports=(summary,),
        files=tuple(files),
        not_carried=lost,
    )


def _refuse_unproven_blocks(proof: Proof, staging: str) -> None:
    """Delete the blocks that nothing proves, and raise CommandFailed if there are any.

    A detector that is started anew sends its answers with its first block, so the next command
    proves their images.
    """
    if texts := proof.unproven_texts():
        blocks = counted(remove_blocks_with(staging, texts), "staged block")
        raise CommandFailed(
            f"nothing was published: {blocks} cannot be proven, as what their detector gave for "
            "the canaries was lost with another block. They are removed. Run the same command "
            "again: it computes their images anew, and keeps the others"
        )


@dataclass(frozen=True)
class _Part:
    """The part of a run that is published: all of it, unless a budget ended the run."""

    shards: Shards  # none if nothing can be published yet
    staged: Staged
    published: Published  # without images and boxes


def _part_to_publish(run: Run, staged: Staged, ended: str | None, writer: OutputWriter) -> _Part:
    """Split a run that a budget ended, and stage its rest as a run of its own."""
    if ended is None:
        return _Part(run.shards, staged, Published())
    split = split_plan(run.shards, staged)
    if not split.left:  # the last image was labelled just in time
        return _Part(run.shards, staged, Published())
    if len(split.finished) and len(split.begun):
        stage_rest(run.run_id, split.begun, staged, writer)
    begun = tuple(mask(member.uri) for shard in split.begun for member in shard.members)
    told = Published(ended=ended, left=split.left, kept=split.begun_images, begun=begun)
    return _Part(split.finished, split.staged, told)


def _report(
    run: Run,
    output: str,
    meters: Meters,
    layout: Layout,
    counts: dict[str, int],
    boxes: int,
    part: Published,
) -> Report:
    """The content of report.json. `part` says what a budget left."""
    node_hours, hours = meters.nodes.read()
    workers = stage_workers(layout)
    summary = report(meters.tally, counts, boxes, workers, node_hours, hours, meters.rates)
    summary["left_out"] = run.left_out
    summary["reconciliation"] = {"planned": sum(counts.values()), **counts}
    if part.ended is not None:
        # Blocks may be staged whose receipts did not arrive in time.
        before = max(0, summary["labelled_before"] + part.kept)
        summary["labelled_before"] = min(before, meters.tally.before)
        summary |= {"ended_by": part.ended, "left": part.left, "kept": part.kept}
    elif not summary["labelled_before"]:  # an estimate is for a whole run
        summary["estimate"] = read_document(output, run.run_id, "run.json").get("estimate")
    return summary


def _gather_page(done: FinishedRun, token: str, pictures: PictureReader) -> "Contents | None":
    """Read what report.html shows. None, with a line that says why, if that raises an error."""
    try:
        from jobs.report.page import gather_contents  # matplotlib would delay the start

        with pictures:
            planned = plan_of_shards(done.shards)
            return gather_contents(done.target.output, done.manifest(token), planned, pictures)
    except Exception as error:  # storage, images and tables raise many types
        _print_missing_page(done.target.output, error)
        return None


def _write_page(done: FinishedRun, contents: "Contents") -> None:
    """Write report.html beside report.json. An error is printed and does not end the run."""
    output, run_id = done.target.output, done.target.run_id
    try:
        from jobs.report.page import render_page

        write_text(output, run_id, "report.html", render_page(contents, done.report))
        place = join(output, paths.document(run_id, "report.html"))
        print_line(f"the page of this run: {mask(place)}")
    except Exception as error:  # drawing and storage raise many types
        _print_missing_page(output, error)


def _print_missing_page(output: str, error: Exception) -> None:
    print_line(
        f"there is no report.html ({reason_of(error)}): `detr-batch report {mask(output)} --html "
        "FILE` makes one"
    )
