"""`detr-batch label`: everything under INPUT that OUTPUT does not hold yet."""

import logging
import secrets
import shlex
import sys
import time
from collections import Counter

import ray
from ray.exceptions import RayTaskError

from jobs.commit import Finished, commit
from jobs.label_options import LabelOptions
from jobs.progress import show
from jobs.run_plan import (
    Run,
    canonical,
    described,
    known_objects,
    new_run,
    replaced_runs,
    staging_url,
    unfinished,
    write_down,
)
from jobs.run_record import Tally, fingerprint, report
from model.config import DeformableDetrConfig
from model.urls import mask
from model.weights import file_sha256, find_weights
from model.zoo import RANDOM, create_model, named_model
from pipeline import retries
from pipeline.dataflow import FlowSettings, label_shards, publish_parts
from pipeline.detect import DetectorSpec
from pipeline.lock import LockLost, OutputLock
from pipeline.plan import plan
from pipeline.publish import (
    PublishTarget,
    ReconcileError,
    committed_runs,
    parts,
    reconcile,
)
from pipeline.schema import OK
from pipeline.stage import staged
from pipeline.storage import InputError, join

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_TOO_MANY_FAILURES = 0, 1, 2, 3


def label(options: LabelOptions) -> int:
    """Run to the end and return the exit code. InputError before anything is written."""
    options.check()
    retries.person_waits = True
    source = options.weights or named_model(options.model).weights
    digest = RANDOM if source == RANDOM else file_sha256(find_weights(source))
    # On the driver too, so that weights that do not fit are refused at once; it does not run here.
    config = create_model(options.model, options.weights, training=True).config
    mark = fingerprint(config, digest, options.score_threshold)
    if options.dry_run:
        known = known_objects(options, mark)
        found = plan(options.input, options.format, options.limit, known, options.output)
        print(described(found))
        return EXIT_OK
    counts: Counter[str] = Counter()  # images by status
    with OutputLock(options.output) as lock:
        known = known_objects(options, mark)
        run = unfinished(options, mark)
        if run:
            start_ray(options)
            counts.update(carry_out(options, run, config, mark, lock))
            known = known_objects(options, mark)
        if not run or (options.limit is None and not options.relabel):
            run = new_run(options, known)
            if run.shards:
                start_ray(options)
                write_down(options, mark, run)
                counts.update(carry_out(options, run, config, mark, lock))
    if not counts:
        print(f"nothing new under {mask(options.input)}: {mask(options.output)} holds it all")
    return verdict(options, counts)


def carry_out(
    options: LabelOptions, run: Run, config: DeformableDetrConfig, mark: str, lock: OutputLock
) -> dict[str, int]:
    """Label and publish a planned run: its images by status. RuntimeError where that fails."""
    device = options.resolved_device()
    spec = DetectorSpec(
        options.model,
        options.weights,
        device,
        options.precision,
        options.score_threshold,
        options.batch_size,
        session=secrets.token_hex(8),
    )
    blocks = join(staging_url(options.output, run.run_id), "blocks")
    target = PublishTarget(options.output, run.run_id, blocks, options.model, mark, config.labels)
    detectors, preparers = pool_sizes(device, options.num_gpus)
    settings = FlowSettings(
        blocks, config.resize, detectors, preparers, images_per_call=4 * options.batch_size
    )
    precision = options.resolved_precision()
    print(f"run {run.run_id}: {options.model} on {device}, {precision}", file=sys.stderr)
    try:
        tally = flow(run, spec, settings)
        return finish(options, run, target, tally, settings, lock)
    except (LockLost, ReconcileError):
        raise
    except Exception as error:  # storage's and workers' are of many kinds
        raise RuntimeError(
            f"the run failed: {_reason(error)}. What is labelled is kept: run the same command "
            "again"
        ) from error


def _reason(error: BaseException) -> str:
    """What a worker said, in a line: Ray puts pages before it, Ray Data (2.60) advice behind."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return mask(lines[-1] if isinstance(error, RayTaskError) else lines[0])


def pool_sizes(device: str, num_gpus: int) -> tuple[int, int]:
    """Detectors, and preparers at most. On CPUs a detector takes all cores of its machine."""
    cpus = int(ray.cluster_resources().get("CPU", 1))
    if device == "cpu":
        return sum(node["Alive"] for node in ray.nodes()), max(1, cpus // 2)
    return num_gpus, max(1, cpus)


def start_ray(options: LabelOptions) -> None:
    """Connect to the cluster, or start a local one that ends with this process."""
    # Their news, and tracebacks of what `carry_out` says in a line, are for Ray's own log files.
    for name, level in (("ray", logging.WARNING), ("ray.data", logging.CRITICAL)):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(level)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # ours is shown
    if ray.is_initialized():
        return
    address = options.address or "local"  # not one that was left running
    try:
        ray.init(
            address=address, log_to_driver=False, include_dashboard=False, configure_logging=False
        )
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--address {address}: no Ray cluster answers there ({reason})") from error


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
) -> dict[str, int]:
    """Reconcile, publish, report, and only then let the run count: its images by status."""
    began = time.time()
    planned = [shard.shard for shard in run.shards]
    lock.check()  # first: who takes a lost lock over removes what was staged
    result = staged(target.staging)
    reconcile(planned, result)
    lock.check()
    files = list(publish_parts(parts(planned, result), target))
    statuses = result.images.group_by("status").aggregate([("status", "count")]).to_pylist()
    counts = {row["status"]: row["status_count"] for row in statuses}
    detections = sum(file.rows for file in files if file.path.startswith("detections/"))
    machines = sum(node["Alive"] for node in ray.nodes())
    tally.seconds["publish"] = time.time() - began
    price = options.price(machines)
    summary = report(tally, counts, detections, settings.detectors, price)
    summary["reconciliation"] = {"planned": len(result.images), **counts}
    replaced = replaced_runs(options, committed_runs(options.output))
    source = canonical(options.input)
    commit(Finished(target, source, run.shards, files, counts, summary, replaced), lock)
    return counts


def verdict(options: LabelOptions, counts: dict[str, int]) -> int:
    """Say what came of it; exit code by the share of the run's images that failed."""
    images = sum(counts.values())
    failed = images - counts.get(OK, 0)
    if images:
        output = mask(options.output)
        print(
            f"{images - failed} images labelled, {failed} failed; tables in {output}, and "
            f"`detr-batch report {shlex.quote(output)}` says how fast and at what cost",
            file=sys.stderr,
        )
    if failed > options.max_failed_fraction * images:
        print(
            f"{failed} of {images} images failed, more than --max-failed-fraction "
            f"{options.max_failed_fraction} allows; their rows in {mask(options.output)}/images "
            "say why",
            file=sys.stderr,
        )
        return EXIT_TOO_MANY_FAILURES
    return EXIT_OK
