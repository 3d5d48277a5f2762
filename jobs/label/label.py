"""`detr-batch label`: everything under INPUT that OUTPUT does not hold yet."""

import secrets
import shlex
import sys
import time
from collections import Counter

import ray
import torch
from ray.exceptions import RayTaskError

from jobs.accounting.estimate import RUNS, Estimate, estimate
from jobs.accounting.node_hours import NodeMeter
from jobs.accounting.startup import CATALOGUE, LISTING, RAY, WEIGHTS, Startup
from jobs.accounting.tally import Tally, report
from jobs.cluster.placement import Placement
from jobs.cluster.start import check_machines, measured_cpus, placed_here, ready, stage_workers
from jobs.label.fingerprint import fingerprint
from jobs.label.metrics import RunMetrics
from jobs.label.options import LabelOptions
from jobs.label.planning import (
    Run,
    described,
    new_run,
    plan_url,
    planned,
    unfinished,
    write_down,
)
from jobs.label.progress import show
from jobs.output import paths
from jobs.output.catalog import read_catalog
from jobs.output.commit import Finished, commit
from jobs.output.known import known_objects
from jobs.output.records import read_document, write_text
from jobs.output.writing import OutputWriter
from jobs.report.pictures import PictureReader, planned_now
from jobs.report.report import past_reports
from model.config import DeformableDetrConfig
from model.weights import file_sha256, find_weights
from model.zoo import RANDOM, create_model, named_model, resolved_precision
from pipeline.dataflow import FlowSettings, label_shards, publish_parts, read_back
from pipeline.isolation.watchdog import unstalled
from pipeline.plan.plan import Plan
from pipeline.plan.remaining import open_work
from pipeline.plan.shards import Shards
from pipeline.schema import OK
from pipeline.stages.detect import BATCHES_PER_CALL, Detector, DetectorSpec
from pipeline.stages.publish import (
    PublishTarget,
    ReconcileError,
    fitting_images,
    parts,
    reconcile,
)
from pipeline.storage import retries
from pipeline.storage.errors import OutputError
from pipeline.storage.files import canonical, join
from pipeline.storage.urls import mask, printable

GONE_SHOWN = 3
EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_TOO_MANY_FAILURES = 0, 1, 2, 3


def label(options: LabelOptions, startup: Startup | None = None) -> int:
    """Run to the end and return the exit code. InputError before anything is written.

    `startup` knows what this process did before; without it nothing is known of that.
    """
    startup = startup or Startup()
    options.check()
    check_machines(options.machines())
    retries.person_waits = True
    source = options.weights or named_model(options.model).weights
    digest = RANDOM if source == RANDOM else file_sha256(find_weights(source))
    # On the driver too, so that weights that do not fit are refused at once; it does not run here.
    config = create_model(options.model, options.weights, training=True).config
    mark = fingerprint(config, digest, options.score_threshold)
    startup.end(WEIGHTS)
    request = options.labels(mark)
    if options.dry_run:
        found = planned(
            options, known_objects(options.output, request, read_catalog(options.output))
        )
        print(
            described(found, expected(options, mark, found.shards), placed_here(options.machines()))
        )
        return EXIT_OK
    counts: Counter[str] = Counter()  # images by status
    with OutputWriter(options.output, options.single_writer, options.keep_replaced) as writer:
        known = known_objects(options.output, request, writer.catalog)
        run = unfinished(options, mark, writer)
        startup.end(CATALOGUE)
        if run and run.shards:
            del known  # of ten million objects it takes a third of a gigabyte
            place = placement(options, run, startup)
            counts.update(carry_out(options, run, place, config, mark, writer, startup))
            startup = Startup()  # of the run that may follow
            known = known_objects(options.output, request, writer.catalog)
            startup.end(CATALOGUE)
        if not run or (options.limit is None and not options.relabel):
            found = planned(options, known)
            del known
            tell_gone(options, found)
            run = new_run(options.output, found)
            startup.end(LISTING)
            if run.shards:
                writer.begin()
                place = placement(options, run, startup)
                estimated = expected(options, mark, run.shards)
                write_down(options, mark, run, found.gone, estimated)
                startup.end(LISTING)
                counts.update(carry_out(options, run, place, config, mark, writer, startup))
    if not counts:
        print(f"nothing new under {mask(options.input)}: {mask(options.output)} holds it all")
    return verdict(options, counts)


def placement(options: LabelOptions, run: Run, startup: Startup) -> Placement:
    """Ray, started or joined, and where on it the run goes. InputError where it cannot."""
    place = ready(options.machines(), join(options.output, paths.LOCK), run.shards.first())
    startup.end(RAY)
    return place


def tell_gone(options: LabelOptions, found: Plan) -> None:
    """Labels of objects that left stay: whoever wants them gone has to know."""
    if len(found.gone):
        first = ", ".join(found.gone[:GONE_SHOWN].to_pylist())
        more = ", ..." if len(found.gone) > GONE_SHOWN else ""
        fate = "go, as --relabel replaces their runs" if options.relabel else "stay"
        print(
            f"{len(found.gone)} objects that {mask(options.output)} holds labels of are not under "
            f"INPUT any more; their labels {fate}: {printable(first)}{more}",
            file=sys.stderr,
        )


def expected(options: LabelOptions, mark: str, shards: Shards) -> Estimate | None:
    """What labelling `shards` should take, by earlier runs of the same model."""
    reports = past_reports(options.output, mark, RUNS)
    return estimate(reports, shards.size, options.rates())


def carry_out(
    options: LabelOptions,
    run: Run,
    place: Placement,
    config: DeformableDetrConfig,
    mark: str,
    writer: OutputWriter,
    startup: Startup,
) -> dict[str, int]:
    """Label and publish a planned run: its images by status. RuntimeError where that fails.

    Nodes are paid for since the `startup` began.
    """
    spec = DetectorSpec(
        options.model,
        options.weights,
        place.device,
        options.precision,
        options.score_threshold,
        options.batch_size,
        session=secrets.token_hex(8),
    )
    target = writer.target(run.run_id, options.model, mark, config.labels)
    plan = plan_url(options.output, run.run_id)
    per_call = BATCHES_PER_CALL * options.batch_size
    settings = FlowSettings(
        plan, target.staging, config.resize, Detector, (spec,), per_call, place.layout
    )
    precision = used_precision(options.precision, place.device)
    print(f"run {run.run_id}: {options.model} on {place.device}, {precision}", file=sys.stderr)
    try:
        tally = Tally(cpus=measured_cpus(options.machines()), startup=startup)
        nodes = NodeMeter(ray.nodes, startup.began)
        with nodes, RunMetrics(options, run, tally, nodes, place.layout.detectors.most):
            flow(run, settings, tally)
            return finish(options, run, target, tally, place, writer, nodes)
    except Exception as error:  # storage's and workers' are of many kinds
        cause = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, OutputError):  # a worker's, which says what to do
            raise OutputError(_reason(error)) from error
        if isinstance(error, OutputError | ReconcileError):
            raise
        raise RuntimeError(
            f"the run failed: {_reason(error)}. What is labelled is kept: run the same command "
            "again"
        ) from error


def used_precision(precision: str, device: str) -> str:
    """What detectors compute in, as far as this machine can tell for them."""
    if precision == "auto" and device == "cuda" and not torch.cuda.is_available():
        return "the best precision of its GPUs"
    return resolved_precision(precision, device)


def _reason(error: BaseException) -> str:
    """What a worker said, in a line: Ray puts pages before it, Ray Data (2.60) advice behind."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return mask(lines[-1] if isinstance(error, RayTaskError) else lines[0])


def flow(run: Run, settings: FlowSettings, tally: Tally) -> None:
    """Label what is not staged yet, showing progress; sums are added to `tally`."""
    before = read_back(settings.staging, settings.layout.nodes)
    work, size = open_work(run.shards, before)
    if work:
        receipts = unstalled(label_shards(work, settings))
        show(receipts, tally, already=before.images, encoded_bytes=size)


def finish(
    options: LabelOptions,
    run: Run,
    target: PublishTarget,
    tally: Tally,
    place: Placement,
    writer: OutputWriter,
    nodes: NodeMeter,
) -> dict[str, int]:
    """Reconcile, publish, report, and only then let the run count: its images by status."""
    began = time.time()
    planned = run.shards.names()
    writer.check()  # who takes a lost lock over may have finished this run
    result = read_back(target.staging, place.layout.nodes)
    reconcile(planned, result)
    grouped = parts(planned, result, fitting_images(options.score_threshold))
    pictures = PictureReader() if options.page else None  # starts while the tables are written
    files = list(publish_parts(grouped, target, place.layout.nodes))
    counts = result.counts()
    detections = sum(file.rows for file in files if file.path.startswith("detections/"))
    tally.seconds["publish"] = time.time() - began
    workers = stage_workers(place.layout)
    summary = report(tally, counts, detections, workers, *nodes.read(), options.rates())
    summary["reconciliation"] = {"planned": result.images, **counts}
    if not summary["labelled_before"]:  # an estimate is of a whole run
        record = read_document(options.output, run.run_id, "run.json")
        summary["estimate"] = record.get("estimate")
    replaced = options.labels(target.fingerprint).replaced(writer.catalog.committed())
    source = canonical(options.input)
    done = Finished(target, source, run.shards, files, counts, dict(summary), replaced)
    if pictures is not None:
        show_page(options.output, done, run, writer.token, pictures)
    commit(done, writer)
    return counts


def show_page(output: str, done: Finished, run: Run, token: str, pictures: PictureReader) -> None:
    """Write report.html beside report.json. Labels are worth more: what goes wrong is said."""
    try:
        from jobs.report.page import page_of  # here, as matplotlib would delay the start

        with pictures:
            planned = planned_now(run.shards)
            page = page_of(output, done.manifest(token), done.report, planned, pictures)
        write_text(output, run.run_id, "report.html", page)
    except Exception as error:  # of drawing, of storage and of tables: of many kinds
        print(
            f"there is no report.html ({_reason(error)}): `detr-batch report {mask(output)} --html "
            "FILE` makes one",
            file=sys.stderr,
        )


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
