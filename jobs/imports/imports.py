"""`detr-batch import`: detections of another model, in COCO's format, as a run of an OUTPUT."""

import hashlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.accounting.node_hours import Rates
from jobs.accounting.plurals import counted
from jobs.accounting.startup import Startup
from jobs.accounting.tally import Tally, near_duplicates_of, report
from jobs.coco.fields import is_number
from jobs.coco.reader import AnnotationFile, label_names, local_file, read_results
from jobs.imports.earlier_imports import images_of_other_files, shard_prefix
from jobs.imports.images import NEEDED, image_rows
from jobs.imports.options import ImportOptions
from jobs.imports.results import BY_ID, CocoResults
from jobs.output.commit import FinishedRun, commit_run
from jobs.output.known_objects import read_plan
from jobs.output.output_writer import OutputWriter
from jobs.output.run_documents import environment, write_record
from jobs.output.run_ids import new_run_id
from pipeline.plan.shards import member_values, tables_of_shards, write_shards
from pipeline.schema import OK, Member, Shard
from pipeline.stages.publish import Part, PartFile, publish_part, reconcile
from pipeline.stages.stage import stage
from pipeline.stages.staged import read_staging
from pipeline.storage import retries
from pipeline.storage.clock import steady_time
from pipeline.storage.files import InputError, canonical_url
from pipeline.storage.urls import mask

# one process does the work of all stages
WORKERS = {"read": 1, "prepare": 1, "detect": 1, "stage": 1}


def import_results(options: ImportOptions, startup: Startup | None = None) -> None:
    """Import DETECTIONS into OUTPUT, unless OUTPUT holds them already.

    `startup` has the time that this process took before; None means that it is not known.
    InputError, before anything is written, for invalid or conflicting files.
    """
    retries.person_waits = True
    tally = Tally(startup=startup or Startup())
    with (
        local_file(options.detections, "DETECTIONS") as detections,
        local_file(options.annotations, "--annotations") as annotations,
        tempfile.TemporaryDirectory() as scratch,
    ):
        source = Member(
            canonical_url(options.detections), _digest(detections), detections.stat().st_size
        )
        names = _names(options)
        file = AnnotationFile(annotations, names[1])
        labels = label_names({one.id: one.name for one in file.categories()}, file.name)
        with OutputWriter(options.output, options.single_writer) as writer:
            mark = fingerprint(options.model_name(), labels)
            if _is_known(options, source, mark, writer):
                print(
                    f"nothing new: {mask(options.output)} holds these detections already (for "
                    "other --annotations or --images import them into another OUTPUT)"
                )
                return
            images = image_rows(file.images(NEEDED), options.images)
            named = {label_id for label_id, name in enumerate(labels) if name}
            entries = read_results(detections, names[0], named, ids_of_names(labels))
            runs = writer.catalog.committed_runs()
            earlier = images_of_other_files(options.output, runs, source.uri, scratch)
            with CocoResults(images, entries, labels, Path(scratch), names, earlier) as results:
                if results.images:
                    writer.begin_writing()
                    _publish(options, source, results, tally, writer)
        print(
            f"{counted(results.boxes, 'box')} of {counted(results.images, 'image')}, "
            f"by {_describe_model(options)}, in {mask(options.output)}",
            file=sys.stderr,
        )
        for line in _remarks(results, names[0]):
            print(line, file=sys.stderr)


def _names(options: ImportOptions) -> tuple[str, str]:
    """What errors call the two files."""
    return f"DETECTIONS {mask(options.detections)}", f"--annotations {mask(options.annotations)}"


def _describe_model(options: ImportOptions) -> str:
    if options.model:
        return options.model
    return f"the model {options.model_name()} (--model gives another name)"


def _remarks(results: CocoResults, name: str) -> list[str]:
    """Lines about what a user may not expect of an import of the file called `name`."""
    lines = []
    if not results.entries:
        lines.append(f"{name} has no detection: its list is empty")
    if results.matched_by != BY_ID:
        lines.append(f"images are matched by {results.matched_by}, not by id")
    if results.beyond:
        beyond = counted(results.beyond, "box")
        lines.append(f"kept as they are: {beyond} beyond the border of the image")
    if results.flat:
        lines.append(f"kept as they are: {counted(results.flat, 'box')} without an area")
    if results.left:
        lines.append(
            f"left as they are: {counted(results.left, 'image')} without an entry in DETECTIONS, "
            "labelled by an import of another file"
        )
    if results.replaced:
        lines.append(
            f"replaced: the boxes of {counted(results.replaced, 'image')} that had some by an "
            "import of another file (all entries of an image belong into one file)"
        )
    return lines


def ids_of_names(labels: Sequence[str]) -> dict[str, int]:
    """The ids of categories by their names. Names that several have, and numbers, are left out."""
    times = Counter(labels)
    return {
        name: label_id
        for label_id, name in enumerate(labels)
        if name and times[name] == 1 and not is_number(name)
    }


def fingerprint(model: str, labels: tuple[str, ...]) -> str:
    """Return 16 hex digits that distinguish imported labels of one model from those of others."""
    document = json.dumps({"imported": model, "labels": labels})
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"


def _is_known(options: ImportOptions, source: Member, mark: str, writer: OutputWriter) -> bool:
    """Whether OUTPUT took these detections in; InputError if it holds those of another model.

    What came in once stays known, also where a later version of the file has replaced it.

    The plans of runs that `compact` merged are read too: the plan of a merged run has one version
    of each file.
    """
    for run in writer.catalog.committed_runs():
        if run["model_fingerprint"] != mark:
            raise InputError(
                f"{mask(options.output)} holds labels of {run['model']} over {run['input']} "
                f"(fingerprint {run['model_fingerprint']}), and these would be of "
                f"{options.model_name()} ({mark}): import them into another OUTPUT, or, if they "
                "are of the same model and categories, give its name as --model"
            )
    if writer.unfinished_runs():
        raise InputError(
            f"{mask(options.output)} holds an unfinished run of `label`: finish it by the same "
            "command, or import into another OUTPUT"
        )
    return any(
        source.etag in member_values(table, "etag").to_pylist()
        for run in writer.catalog.labelling_runs()
        for table in read_plan(options.output, run["plan"])
    )


def _publish(
    options: ImportOptions,
    source: Member,
    results: CocoResults,
    tally: Tally,
    writer: OutputWriter,
) -> None:
    """Stage and publish part by part, as `label` does, then commit the run."""
    run_id, name = new_run_id(options.output), options.model_name()
    mark = fingerprint(name, results.labels)
    target = writer.publish_target(run_id, name, mark, results.labels)
    blocks = target.staging
    write_record(options.output, run_id, _record(options, run_id, mark))
    files: list[PartFile] = []
    shards: list[str] = []
    began = time.monotonic()
    with writer.explain_takeover():
        for shard, table in results.blocks(shard_prefix(source.uri)):
            receipt = stage(table, blocks)
            tally.add(receipt)
            files += publish_part(Part(len(shards), (shard,), (receipt.file,)), target)
            shards.append(shard)
        reconcile(shards, read_staging(blocks))
    tally.seconds["publish"] = time.monotonic() - began
    counts = {OK: results.images}
    hours = (steady_time() - tally.started) / 3600
    summary = report(tally, counts, results.boxes, WORKERS, {}, hours, Rates())
    summary["near_duplicates"] = near_duplicates_of(files)
    summary["reconciliation"] = {"planned": results.images, **counts}
    planned = write_shards(tables_of_shards(Shard(shard, "results", (source,)) for shard in shards))
    commit_run(FinishedRun(target, source.uri, planned, files, counts, dict(summary)), writer)


def _record(options: ImportOptions, run_id: str, mark: str) -> dict[str, Any]:
    urls = {name: getattr(options, name) for name in ("detections", "output", "annotations")}
    images = options.images and canonical_url(options.images)
    return {
        "run_id": run_id,
        "options": {
            "model": options.model_name(),
            "images": images,
            **{name: mask(url) for name, url in urls.items()},
        },
        "model_fingerprint": mark,
        "started_at": time.time(),
        **environment(),
    }
