"""`detr-batch import`: what another model found, in COCO's format, as a run of an OUTPUT."""

import hashlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from jobs.accounting.node_hours import Rates
from jobs.accounting.tally import Tally, report
from jobs.imports.annotations import images_of, labels_of
from jobs.imports.results import CocoResults
from jobs.output.commit import Finished, commit
from jobs.output.known import read_plan
from jobs.output.records import environment, write_record
from jobs.output.run_ids import new_run_id
from jobs.output.writing import OutputWriter
from pipeline.plan.shards import in_tables, kept, members
from pipeline.schema import OK, Member, Shard
from pipeline.stages.publish import Part, PartFile, publish_part, reconcile
from pipeline.stages.stage import stage
from pipeline.stages.staged import staged
from pipeline.storage import retries
from pipeline.storage.files import InputError, canonical, explained, open_location
from pipeline.storage.retries import retried
from pipeline.storage.urls import mask

WORKERS = {"read": 1, "prepare": 1, "detect": 1, "stage": 1}  # one process does it all


@dataclass(frozen=True)
class ImportOptions:
    """The options of the command line."""

    detections: str
    output: str
    annotations: str
    model: str | None = None
    images: str | None = None
    single_writer: bool = False

    def model_name(self) -> str:
        return self.model or Path(mask(self.detections)).stem


def import_results(options: ImportOptions) -> None:
    """Take DETECTIONS into OUTPUT, unless it holds them already. InputError before any writing."""
    retries.person_waits = True
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        detections = _local(options.detections, "DETECTIONS", scratch / "detections")
        annotations = _local(options.annotations, "--annotations", scratch / "annotations")
        source = Member(
            canonical(options.detections), _digest(detections), detections.stat().st_size
        )
        labels = labels_of(annotations)
        with OutputWriter(options.output, options.single_writer) as writer:
            mark = fingerprint(options.model_name(), labels)
            if _is_known(options, source, mark, writer):
                print(
                    f"nothing new: {mask(options.output)} holds these detections already (for "
                    "other --annotations or --images import them into another OUTPUT)"
                )
                return
            images = images_of(annotations, options.images)
            with CocoResults(detections, images, labels, scratch) as results:
                writer.begin()
                _publish(options, source, results, tally, writer)
        print(
            f"{results.boxes} boxes of {results.images} images, by {options.model_name()}, in "
            f"{mask(options.output)}",
            file=sys.stderr,
        )
        if results.beyond:
            print(
                f"{results.beyond} boxes reach beyond their pictures, and are kept so",
                file=sys.stderr,
            )


def fingerprint(model: str, labels: tuple[str, ...]) -> str:
    """16 hex digits of what tells imported labels from those of others."""
    document = json.dumps({"imported": model, "labels": labels})
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def _local(url: str, what: str, copy: Path) -> Path:
    """A file as a local one: itself, or a copy that is fetched to `copy`."""
    fs, path = open_location(url, what)
    with explained(what, url):
        if isinstance(fs, LocalFileSystem):
            Path(path).open("rb").close()
            return Path(path)
        retried(fs.get_file, path, str(copy))
    return copy


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"


def _is_known(options: ImportOptions, source: Member, mark: str, writer: OutputWriter) -> bool:
    """Whether OUTPUT holds these detections. InputError where it holds those of another model."""
    known: set[str] = set()
    for run in writer.catalog.committed():
        if run["model_fingerprint"] != mark:
            raise InputError(
                f"{mask(options.output)} holds labels of {run['model']} over {run['input']} "
                f"(fingerprint {run['model_fingerprint']}), and these would be of "
                f"{options.model_name()} ({mark}): import them into another OUTPUT, or, if they "
                "are of the same model and categories, give its name as --model"
            )
        for table in read_plan(options.output, run["plan"]):
            known.update(members(table, "etag").to_pylist())
    if writer.unfinished():
        raise InputError(
            f"{mask(options.output)} holds an unfinished run of `label`: finish it by the same "
            "command, or import into another OUTPUT"
        )
    return source.etag in known


def _publish(
    options: ImportOptions,
    source: Member,
    results: CocoResults,
    tally: Tally,
    writer: OutputWriter,
) -> None:
    """Stage and publish part by part, as `label` does, then commit."""
    run_id, name = new_run_id(options.output), options.model_name()
    mark = fingerprint(name, results.labels)
    target = writer.target(run_id, name, mark, results.labels)
    blocks = target.staging
    write_record(options.output, run_id, _record(options, run_id, mark))
    files: list[PartFile] = []
    shards: list[str] = []
    began = time.time()
    for shard, table in results.blocks(source.uri):
        receipt = stage(table, blocks)
        tally.add(receipt)
        files += publish_part(Part(len(shards), (shard,), (receipt.file,)), target)
        shards.append(shard)
    reconcile(shards, staged(blocks))
    tally.seconds["publish"] = time.time() - began
    counts = {OK: results.images}
    hours = (time.time() - tally.started) / 3600
    summary = report(tally, counts, results.boxes, WORKERS, {}, hours, Rates())
    summary["reconciliation"] = {"planned": results.images, **counts}
    planned = kept(in_tables(Shard(shard, "results", (source,)) for shard in shards))
    commit(Finished(target, source.uri, planned, files, counts, dict(summary)), writer)


def _record(options: ImportOptions, run_id: str, mark: str) -> dict[str, Any]:
    urls = {name: getattr(options, name) for name in ("detections", "output", "annotations")}
    images = options.images and mask(options.images)
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
