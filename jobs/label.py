"""`detr-batch label`: everything under INPUT that OUTPUT does not hold yet."""

import io
import logging
import secrets
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from jobs.prices import Price, price_of
from jobs.progress import show
from jobs.run_record import Tally, environment, fingerprint, read_document, report, write_document
from model.weights import file_sha256, find_weights
from model.zoo import RANDOM, autocast_dtype, create_model, named_model
from pipeline.dataflow import FlowSettings, label_shards, publish_parts
from pipeline.detect import DetectorSpec
from pipeline.lock import OutputLock
from pipeline.plan import from_table, plan, to_table
from pipeline.publish import PublishTarget, committed_runs, parts, reconcile, write_manifest
from pipeline.schema import Shard
from pipeline.stage import staged
from pipeline.storage import InputError, join, open_location, write_whole

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_TOO_MANY_FAILURES = 0, 1, 2, 3


@dataclass(frozen=True)
class LabelOptions:
    """The options of the command line, checked by `check`."""

    input: str
    output: str
    model: str = "deformable-detr"
    weights: str | None = None
    score_threshold: float = 0.3
    format: str = "auto"
    limit: int | None = None
    batch_size: int = 8
    precision: str = "auto"
    device: str = "auto"
    num_gpus: int = 1
    address: str | None = None
    max_failed_fraction: float = 1.0
    usd_per_hour: float | None = None
    instance_type: str | None = None
    spot: bool = False
    relabel: bool = False
    dry_run: bool = False

    def check(self) -> None:
        """InputError for values that cannot be meant."""
        if not 0 <= self.score_threshold < 1:
            raise InputError(f"--score-threshold {self.score_threshold}: give 0 to below 1")
        if not 0 <= self.max_failed_fraction <= 1:
            raise InputError(f"--max-failed-fraction {self.max_failed_fraction}: give 0 to 1")
        if self.usd_per_hour is not None and self.instance_type:
            raise InputError("--usd-per-hour and --instance-type both name a price: give one")
        if self.instance_type:
            price_of(self.instance_type, self.spot)
        for name in ("batch_size", "num_gpus"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1")
        gpus = torch.cuda.device_count()
        if self.device == "cuda" and not self.address and not gpus:
            raise InputError(
                "--device cuda: this machine has no GPU that torch can use; "
                "pass --device cpu, or --address of a cluster that has one"
            )
        if self.device != "cpu" and not self.address and 0 < gpus < self.num_gpus:
            raise InputError(f"--num-gpus {self.num_gpus}: this machine has {gpus}")

    def resolved_device(self) -> str:
        """Where detectors run; ask when Ray runs. "auto": on GPUs where there are any.

        A cluster that makes its GPU nodes on demand has none yet: name "cuda" there.
        """
        if self.device != "auto":
            return self.device
        resources = ray.cluster_resources() if self.address else {}
        return "cuda" if resources.get("GPU") or torch.cuda.is_available() else "cpu"

    def price(self, machines: int) -> Price | None:
        """Of all `machines` together; None where none was given."""
        if self.usd_per_hour is not None:
            return Price(self.usd_per_hour, "--usd-per-hour")
        if self.instance_type is None:
            return None
        one = price_of(self.instance_type, self.spot)
        return Price(machines * one.usd_per_hour, f"{machines} x {one.basis}")


@dataclass(frozen=True)
class Run:
    """A run that has been planned, new or taken up again."""

    run_id: str
    shards: list[Shard]
    resumed: bool


def staging_url(output: str, run_id: str) -> str:
    return join(output, "_staging", run_id)


def label(options: LabelOptions) -> int:
    """Run to the end and return the exit code. InputError before anything is written."""
    options.check()
    named = named_model(options.model)
    source = options.weights or named.weights
    digest = RANDOM if source == RANDOM else file_sha256(find_weights(source))
    net = create_model(options.model, options.weights)  # on the driver, to refuse misfits at once
    mark = fingerprint(net.config, digest, options.score_threshold)
    runs = [] if options.relabel else committed_runs(options.output)
    other = next((run for run in runs if run["model_fingerprint"] != mark), None)
    if other:
        raise InputError(
            f"{options.output} holds labels of {other['model']} (fingerprint "
            f"{other['model_fingerprint']}), and this run would be {options.model} ({mark}): use "
            "the same model, weights and threshold, another OUTPUT, or --relabel"
        )
    known = known_objects(options.output, [run["run_id"] for run in runs])
    if options.dry_run:
        shards = plan(options.input, options.format, options.limit, known).shards
        size = sum(shard.size for shard in shards) / 1e6
        print(f"{len(shards)} shards, {size:.1f} MB to label; nothing was written")
        return EXIT_OK
    with OutputLock(options.output) as lock:
        run = unfinished(options, mark) or begin(options, mark, known)
        if not run.shards:
            print(f"nothing new under {options.input}: {options.output} holds it all")
            return EXIT_OK
        start_ray(options)
        spec = DetectorSpec(
            options.model,
            options.weights,
            options.resolved_device(),
            options.precision,
            options.score_threshold,
            options.batch_size,
        )
        target = PublishTarget(
            options.output,
            run.run_id,
            join(staging_url(options.output, run.run_id), "blocks"),
            options.model,
            mark,
            net.config.labels,
        )
        settings = FlowSettings(
            target.staging,
            net.config.resize,
            *pool_sizes(spec.device, options.num_gpus),
            images_per_call=4 * options.batch_size,
        )
        dtype = autocast_dtype(options.precision, "cpu" if spec.device == "cpu" else spec.device)
        print(
            f"run {run.run_id}: {options.model} on {spec.device}, {dtype or 'fp32'}",
            file=sys.stderr,
        )
        tally = flow(run, spec, settings)
        finish(options, run, target, tally, settings, lock)
    return verdict(options, tally)


def known_objects(output: str, run_ids: list[str]) -> set[tuple[str, str]]:
    """(uri, etag) of every object that committed runs have read.

    InputError where one was read in part: it would lose the rest, or label the beginning twice.
    """
    known: set[tuple[str, str]] = set()
    for run_id in run_ids:
        fs, path = open_location(join(output, "_runs", run_id, "plan.parquet"), "OUTPUT")
        with fs.open(path, "rb") as file:
            for shard in from_table(pq.read_table(file)):
                if shard.limit is not None:
                    raise InputError(
                        f"{output} holds a run in which --limit cut {shard.shard} short: label it "
                        "whole into another OUTPUT, or pass --relabel"
                    )
                known.update((member.uri, member.etag) for member in shard.members)
    return known


def unfinished(options: LabelOptions, mark: str) -> Run | None:
    """The run that a killed command left behind, if it was this command."""
    fs, path = open_location(join(options.output, "_staging"), "OUTPUT")
    if not fs.exists(path):
        return None
    plans = sorted(name for name in fs.find(path) if name.endswith("/plan.parquet"))
    committed = {run["run_id"] for run in committed_runs(options.output)}
    for name in plans:
        run_id = name.split("/")[-2]
        folder = name.rsplit("/", 1)[0]
        if run_id in committed:  # published, but killed before it had tidied up
            fs.rm(folder, recursive=True)
            continue
        record = read_document(options.output, run_id, "run.json")
        if record["model_fingerprint"] == mark and record["options"]["input"] == options.input:
            with fs.open(name, "rb") as file:
                return Run(run_id, from_table(pq.read_table(file)), resumed=True)
        if not options.relabel:
            raise InputError(
                f"{options.output} holds an unfinished run of {record['options']['model']} over "
                f"{record['options']['input']}: run that command again to finish it, or pass "
                "--relabel to drop it"
            )
        fs.rm(folder, recursive=True)
    return None


def begin(options: LabelOptions, mark: str, known: set[tuple[str, str]]) -> Run:
    """Plan a new run, and write down the plan that a rerun will follow."""
    shards = plan(options.input, options.format, options.limit, known).shards
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    if shards:
        record: dict[str, Any] = {
            "run_id": run_id,
            "options": asdict(options),
            "model_fingerprint": mark,
            "started_at": time.time(),
            **environment(),
        }
        write_document(options.output, run_id, "run.json", record)
        url = join(staging_url(options.output, run_id), "plan.parquet")
        write_table(url, to_table(shards))
    return Run(run_id, list(shards), resumed=False)


def write_table(url: str, table: pa.Table) -> None:
    """Put a table at `url` as Parquet, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    fs, path = open_location(url, "OUTPUT")
    write_whole(fs, path, buffer.getvalue())


def pool_sizes(device: str, num_gpus: int) -> tuple[int, int]:
    """Detectors, and preparers at most. On CPUs a detector takes all cores of its machine."""
    cpus = int(ray.cluster_resources().get("CPU", 1))
    if device == "cpu":
        return sum(node["Alive"] for node in ray.nodes()), max(1, cpus // 2)
    return num_gpus, max(1, cpus)


def start_ray(options: LabelOptions) -> None:
    """Connect to the cluster, or start a local one that ends with this process."""
    for name in ("ray", "ray.data"):  # their news are for Ray's own log files
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.WARNING)
    if not ray.is_initialized():
        ray.init(
            address=options.address,
            log_to_driver=False,
            include_dashboard=False,
            configure_logging=False,
        )


def flow(run: Run, spec: DetectorSpec, settings: FlowSettings) -> Tally:
    """Label what is not staged yet, showing progress."""
    before = staged(settings.staging)
    complete = before.complete()
    open_shards = [shard for shard in run.shards if shard.shard not in complete]
    done = {shard.shard: before.done(shard.shard) for shard in open_shards}
    tally = Tally()
    if open_shards:
        receipts = label_shards(open_shards, done, spec, settings)
        size = sum(shard.size for shard in open_shards)
        show(receipts, tally, already=len(before.images), encoded_bytes=size)
    return tally


def finish(
    options: LabelOptions,
    run: Run,
    target: PublishTarget,
    tally: Tally,
    settings: FlowSettings,
    lock: OutputLock,
) -> None:
    """Reconcile, publish, report, and only then let the run count."""
    planned = [shard.shard for shard in run.shards]
    result = staged(target.staging)
    reconcile(planned, result)
    lock.check()
    files = list(publish_parts(parts(planned, result), target))
    statuses = result.images.group_by("status").aggregate([("status", "count")]).to_pylist()
    counts = {row["status"]: row["status_count"] for row in statuses}
    machines = sum(node["Alive"] for node in ray.nodes())
    summary = report(tally, settings.detectors, options.price(machines))
    summary["reconciliation"] = {"planned": len(result.images), **counts}
    write_document(options.output, run.run_id, "report.json", summary)
    write_table(join(options.output, "_runs", run.run_id, "plan.parquet"), to_table(run.shards))
    lock.check()
    write_manifest(target, files, counts)
    fs, path = open_location(staging_url(options.output, run.run_id), "OUTPUT")
    fs.rm(path, recursive=True)


def verdict(options: LabelOptions, tally: Tally) -> int:
    """Exit code by the share of images that failed."""
    failed = tally.failed.total()
    if failed > options.max_failed_fraction * max(tally.images, 1):
        print(
            f"{failed} of {tally.images} images failed, more than --max-failed-fraction "
            f"{options.max_failed_fraction} allows; their rows in {options.output}/images say why",
            file=sys.stderr,
        )
        return EXIT_TOO_MANY_FAILURES
    return EXIT_OK
