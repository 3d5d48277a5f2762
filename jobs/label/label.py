"""`detr-batch label`: label every image under INPUT that OUTPUT has no labels of."""

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import ray

from jobs.accounting.estimate import RUNS, Estimate, estimate
from jobs.accounting.node_hours import NodeMeter
from jobs.accounting.startup import CATALOGUE, LISTING, RAY, WEIGHTS, Startup
from jobs.accounting.tally import Tally
from jobs.cluster.computation import computation_of_detectors
from jobs.cluster.placement import Placement
from jobs.cluster.ray_internals import ray_data_without_helpers
from jobs.cluster.request import ClusterRequest
from jobs.cluster.start import (
    check_machines,
    measured_cpus,
    placement_without_starting,
    start_or_join_ray,
)
from jobs.label.canaries.choice import Canaries, choose_canaries
from jobs.label.canaries.images import prepare_canaries
from jobs.label.canaries.proof import CanaryDeviation, Proof
from jobs.label.execution import explained_failures, label_images, reason_of
from jobs.label.fingerprint import fingerprint
from jobs.label.metrics import RunMetrics
from jobs.label.model_choice import choose_model
from jobs.label.notices import print_other_computations, print_plan_notices
from jobs.label.options import LabelOptions
from jobs.label.outcome import EXIT_OK, print_outcome, print_way_to_failures
from jobs.label.places import check_places
from jobs.label.planning import (
    PlanRequest,
    Run,
    make_run,
    plan_as_text,
    plan_images,
    plan_request,
    plan_url,
)
from jobs.label.publication import Meters, Published, publish_run
from jobs.label.run_record import write_run_record
from jobs.label.unfinished import take_up_unfinished_run, unfinished_runs_as_lines
from jobs.output.catalog import read_catalog
from jobs.output.gone import record_gone_objects
from jobs.output.known import LabelRequest, known_objects
from jobs.output.output_writer import (
    OutputWriter,
    check_keep_replaced,
    check_output_without_writing,
)
from jobs.report.report import past_reports
from model.computation import Computation
from model.description import Description
from model.detectors import describe
from model.named import RANDOM
from model.zoo import offered_precision
from pipeline.dataflow import FlowSettings
from pipeline.isolation import sandbox
from pipeline.plan.digests import Known
from pipeline.plan.plan import Plan, left_out_as_text
from pipeline.plan.shards import Shards
from pipeline.schema import OK
from pipeline.stages.detect import CPU_THREADS, Detector, DetectorSpec
from pipeline.storage import retries
from pipeline.storage.access import use_input_access
from pipeline.storage.errors import CommandFailed, InputError
from pipeline.storage.files import canonical_url
from pipeline.storage.urls import mask


@dataclass(frozen=True)
class Command:
    """One `label` command: its options, and the requests made from them."""

    options: LabelOptions
    detector: Description
    wanted: PlanRequest  # the images to label
    labels: LabelRequest  # the model that labels them
    canaries: Canaries | None = None  # the images with known boxes that prove the run

    @property
    def output(self) -> str:
        return self.options.output

    @property
    def sha256(self) -> str | None:
        """The digest of the weights; None if they are random."""
        return None if self.detector.weights == RANDOM else self.detector.weights

    def machines(self, shards: Shards) -> ClusterRequest:
        """The machines that label `shards`."""
        return replace(self.options.machines(), images=shards.images)

    def estimate(self, shards: Shards) -> Estimate | None:
        """The estimated time and cost of `shards`, from earlier runs of the same model."""
        reports = past_reports(self.output, self.labels.fingerprint, RUNS)
        return estimate(reports, shards.size, self.options.rates())


def label(options: LabelOptions, startup: Startup | None = None) -> int:
    """Run the command and return its exit code. InputError is raised before anything is written.

    `startup` has the time that this process took before; None means that it is not known.
    """
    startup = startup or Startup()
    options.check()
    check_keep_replaced(options.keep_replaced)
    check_machines(options.machines())
    retries.person_waits = True
    use_input_access(options.input_access, options.output)
    check_places(options.input, options.output)
    command = _read_model(choose_model(options))
    startup.end(WEIGHTS)
    if options.dry_run:
        print(_describe_plan(command))
        return EXIT_OK
    with OutputWriter(options.output, options.single_writer, options.keep_replaced) as writer:
        published, left_out = _label_what_is_new(command, writer, startup)
        runs = writer.catalog.committed_runs()
    if not published.images:
        print(f"nothing new under {mask(options.input)}: {mask(options.output)} holds it all")
        if any(run["images"].keys() - {OK} for run in runs):
            print_way_to_failures(options.output)
    code = print_outcome(options.output, published, options.max_failed_fraction)
    if left_out:
        print(f"left out of {mask(options.input)}: {left_out}", file=sys.stderr)
    return code


def _read_model(options: LabelOptions) -> Command:
    """Read the command's model. Raises CheckpointError if weights are missing or do not fit."""
    assert options.model is not None
    detector = describe(options.model, options.weights)
    offered_precision(options.model, detector.precisions, options.precision)
    mark = fingerprint(detector.identity, detector.weights, options.score_threshold)
    canaries = choose_canaries(options, options.output, mark, detector.labels, detector.resize)
    digest = None if canaries is None else canaries.digest
    wanted = replace(plan_request(options), canaries=digest)
    return Command(
        options,
        detector,
        wanted,
        LabelRequest(
            canonical_url(options.input),
            options.model,
            options.score_threshold,
            mark,
            options.relabel,
            options.retry_failed,
            (options.format, options.image_column, options.id_column),
        ),
        canaries,
    )


def _describe_plan(command: Command) -> str:
    """The text that --dry-run prints. Raises the errors that the run would raise so far."""
    check_output_without_writing(command.output)
    catalog = read_catalog(command.output)
    known = known_objects(command.output, command.labels, catalog)
    unfinished = unfinished_runs_as_lines(catalog, command.wanted, command.labels)
    found = _plan(command, known)
    placement = placement_without_starting(command.machines(found.shards))
    text = plan_as_text(found, command.estimate(found.shards), placement.as_text())
    return "\n".join([*unfinished, text])


def _plan(command: Command, known: Known) -> Plan:
    """Plan what is new. Raises an error if --relabel would drop labels that it does not replace."""
    found = plan_images(command.wanted, known)
    if command.labels.relabel and found.of_other_format:
        raise InputError(
            f"--relabel --format {command.wanted.format} would drop the labels of "
            f"{found.of_other_format} objects of other formats: relabel without --format"
        )
    if command.labels.relabel and found.unreached:
        raise CommandFailed(
            f"--relabel would drop the labels of {found.unreached} listed objects whose stores do "
            "not answer now: run the same command again when they do"
        )
    return found


def _label_what_is_new(
    command: Command, writer: OutputWriter, startup: Startup
) -> tuple[Published, str]:
    """Finish the run of a killed command, if there is one, then label the new images.

    Returns what both runs published, and what is left out, as text.
    """
    options = command.options
    published = Published()
    known = known_objects(command.output, command.labels, writer.catalog)
    unfinished = take_up_unfinished_run(writer, command.wanted, command.labels)
    startup.end(CATALOGUE)
    if unfinished and unfinished.shards:
        del known  # it takes a third of a gigabyte for ten million objects
        placed = _start_ray(command, unfinished, startup)
        published += execute_run(command, unfinished, placed, writer, startup)
        startup = Startup()  # for the run that may follow
    if unfinished and (options.limit is not None or options.relabel):
        return published, left_out_as_text(unfinished.left_out)
    if unfinished:
        # What failed in the unfinished run was tried by this very command.
        tried = unfinished.retries_failed or not options.retry_failed
        attempts = [unfinished.run_id] if tried else []
        known = known_objects(command.output, command.labels, writer.catalog, attempts)
        startup.end(CATALOGUE)
    found = _plan(command, known)
    del known
    print_plan_notices(options, found)
    run = make_run(command.output, found, command.wanted.canaries)
    startup.end(LISTING)
    known_runs = writer.catalog.labelling_runs()
    if not run.shards:
        record_gone_objects(command.output, known_runs, command.labels.source, found.gone)
    if run.shards:
        writer.begin_writing()
        placed = _start_ray(command, run, startup)
        if not options.relabel:
            print_other_computations(
                command.output, command.labels.fingerprint, placed.computation, known_runs
            )
        write_run_record(
            command.output,
            run,
            options.without_secrets(command.labels.source),
            command.labels.fingerprint,
            placed.computation,
            found.gone,
            command.estimate(run.shards),
            len(writer.catalog.state.runs),
        )
        startup.end(LISTING)
        published += execute_run(command, run, placed, writer, startup)
    return published, left_out_as_text(found.left_out, found.first_left_out)


@dataclass(frozen=True)
class Placed:
    """Where a run computes, and with what."""

    placement: Placement
    computation: Computation


def _start_ray(command: Command, run: Run, startup: Startup) -> Placed:
    """Start or join Ray, and place the run on it. Raises InputError if it does not fit there."""
    if missing := sandbox.why_absent():  # before Ray starts threads; workers log their own
        print(f"images are decoded without a sandbox on this machine: {missing}", file=sys.stderr)
    request = command.machines(run.shards)
    precision = offered_precision(
        command.labels.model,
        command.detector.precisions,
        command.options.precision if run.precision == "auto" else run.precision,
    )
    if run.device != "auto":  # a resumed run
        request = replace(request, device=run.device)
        try:
            check_machines(request)
        except InputError as error:
            raise InputError(
                f"the unfinished run {run.run_id} computes on {run.device}: {error}; --relabel "
                "drops the run"
            ) from error
    first, access = run.shards.first_member(), command.options.input_access
    where = "the cluster" if request.address else "this machine"
    print(f"starting Ray and the model on {where}", file=sys.stderr)
    placement = start_or_join_ray(request, command.output, first, access)
    count = command.options.batch_size or run.count
    if command.options.batch_size and command.detector.is_alone:
        print(f"--batch-size: images of {command.labels.model} go one by one", file=sys.stderr)
    elif command.options.batch_size and placement.device == "cpu":
        print("--batch-size is for GPUs: on CPUs images go one by one", file=sys.stderr)
    count = 1 if command.detector.is_alone else count
    computation = computation_of_detectors(placement, precision, count, bool(request.address))
    startup.end(RAY)
    return Placed(placement, computation)


def execute_run(
    command: Command, run: Run, placed: Placed, writer: OutputWriter, startup: Startup
) -> Published:
    """Label and publish a planned run.

    Raises CommandFailed if that fails. Node-hours count from the time when the `startup` began.
    """
    options, layout = command.options, placed.placement.layout
    canaries = command.canaries
    proof = None if canaries is None else Proof(canaries, command.detector.labels)
    target = writer.publish_target(
        run.run_id, command.labels.model, command.labels.fingerprint, command.detector.labels
    )
    settings = _flow_settings(command, run, target.staging, placed)
    print(f"run {run.run_id}: {target.model} in {placed.computation.as_text()}", file=sys.stderr)
    if command.sha256 is None:
        print("the weights are random: the boxes will mean nothing", file=sys.stderr)
    with writer.explain_takeover(), explained_failures():
        rates, most = options.rates(), layout.detectors.most
        tally = Tally(cpus=measured_cpus(options.machines()), startup=startup)
        nodes = NodeMeter(ray.nodes, startup.began)
        alone = nullcontext() if options.machines().address else ray_data_without_helpers()
        with (
            alone,
            nodes,
            _drop_unproven_staging(writer, run.run_id),
            RunMetrics(options.output, run, tally, nodes, rates, most),
        ):
            label_images(run.shards, settings, tally, proof)
            meters = Meters(tally, nodes, rates)
            page = options.page
            return publish_run(run, target, command.labels, layout, meters, writer, page, proof)


@contextmanager
def _drop_unproven_staging(writer: OutputWriter, run_id: str) -> Iterator[None]:
    """Delete what a run staged if one of its detectors deviates.

    If that fails, the next command finds the deviation in the staged blocks again.
    """
    try:
        yield
    except CanaryDeviation as deviation:
        try:
            writer.drop_staging(run_id)
        except Exception as error:  # stores raise many types
            raise CanaryDeviation(f"{deviation} (not deleted yet: {reason_of(error)})") from error
        raise


def _flow_settings(command: Command, run: Run, staging: str, placed: Placed) -> FlowSettings:
    """The settings of the dataflow for a run."""
    options = command.options
    spec = DetectorSpec(
        command.labels.model,
        command.detector.place or options.weights,
        placed.computation.device,
        placed.computation.precision,
        options.score_threshold,
        placed.computation.count,
        session=secrets.token_hex(8),
        sha256=command.sha256,
        threads=CPU_THREADS,
        calls=placed.placement.layout.detectors.calls,
        canaries=()
        if command.canaries is None
        else prepare_canaries(
            command.canaries.reference,
            command.detector.resize,
            enlarge=not placed.placement.layout.detectors.num_gpus,
        ),
        measures_gpu=True,
    )
    return FlowSettings(
        plan_url(options.output, run.run_id),
        staging,
        command.detector.resize,
        Detector,
        (spec,),
        placed.placement.layout,
    )
