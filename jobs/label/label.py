"""`detr-batch label`: label every image under INPUT that OUTPUT has no labels of."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import ray
import torch

from jobs.accounting.node_hours import NodeMeter
from jobs.accounting.startup import CATALOGUE, LISTING, RAY, WEIGHTS, Startup
from jobs.accounting.tally import Tally
from jobs.cluster.computation import computation_of_detectors
from jobs.cluster.ray_internals import ray_data_without_helpers
from jobs.cluster.start import (
    alive_nodes,
    check_machines,
    measured_cpus,
    placement_without_starting,
    start_or_join_ray,
    this_machine,
)
from jobs.label.budget_options import limits_as_lines
from jobs.label.budgeted import RunClock, refuse_without_progress, spent_before
from jobs.label.canaries.proof import CanaryDeviation, Proof
from jobs.label.checks import checked
from jobs.label.command import Command, Placed, flow_settings, read_command
from jobs.label.execution import explained_failures, label_images, reason_of
from jobs.label.log.lines import print_line, print_start
from jobs.label.metrics import RunMetrics
from jobs.label.model_choice import choose_model
from jobs.label.notices import print_other_computations, print_plan_notices
from jobs.label.notify.announced_run import AnnouncedRun, figures_so_far
from jobs.label.notify.notifier import Notifier
from jobs.label.options import LabelOptions
from jobs.label.outcome import (
    EXIT_OK,
    print_outcome,
    print_untried_failures,
    print_way_to_failures,
)
from jobs.label.planning import (
    Run,
    make_run,
    plan_as_text,
    plan_images,
    plan_url,
)
from jobs.label.price_notice import price_notice
from jobs.label.probe import estimate_of_dry_run
from jobs.label.publication import Meters, Published, StagedRun, publish_run
from jobs.label.run_record import write_run_record
from jobs.label.unfinished import take_up_unfinished_run, unfinished_runs_as_lines
from jobs.output.catalog import read_catalog
from jobs.output.gone_objects import record_gone_objects
from jobs.output.known_objects import known_objects
from jobs.output.output_writer import (
    OutputWriter,
    check_output_without_writing,
)
from model.zoo import offered_precision
from pipeline.isolation import sandbox
from pipeline.plan.digests import Known
from pipeline.plan.plan import Plan, left_out_as_text
from pipeline.schema import OK
from pipeline.storage import retries
from pipeline.storage.errors import CommandFailed, InputError
from pipeline.storage.urls import mask


def label(
    options: LabelOptions, startup: Startup | None = None, notifier: Notifier | None = None
) -> int:
    """Run the command and return its exit code. InputError is raised before anything is written.

    `startup` has the time that this process took before; None means that it is not known. The
    `notifier` is told of each run; the caller tells it how the command ended.
    """
    startup = startup or Startup()
    notifier = notifier or Notifier(None, options.input, options.output)
    retries.person_waits = True
    options = checked(options)
    check_machines(options.machines())
    budget = options.budget(startup.began, options.rates())
    command = read_command(choose_model(options), notifier, budget)
    startup.end(WEIGHTS)
    for line in limits_as_lines(budget):
        print_line(line)
    if options.dry_run:
        print(_describe_plan(command, startup))
        return EXIT_OK
    with OutputWriter(options.output, options.single_writer, options.keep_replaced) as writer:
        published, left_out = _label_what_is_new(command, writer, startup)
        runs = writer.catalog.committed_runs()
    if not published.images and published.ended is None:
        print(f"nothing new under {mask(options.input)}: {mask(options.output)} holds it all")
        if options.retry_failed:
            print_untried_failures(options.output, runs)
        if any(run["images"].keys() - {OK} for run in runs):
            print_way_to_failures(options.output)
    code = print_outcome(
        options.output, published, options.max_failed_fraction, options.budget_exit_code
    )
    if left_out:
        print_line(f"left out of {mask(options.input)}: {left_out}")
    return code


def _describe_plan(command: Command, startup: Startup) -> str:
    """The text that --dry-run prints. Raises the errors that the run would raise so far."""
    check_output_without_writing(command.output)
    catalog = read_catalog(command.output)
    known = known_objects(command.output, command.labels, catalog)
    unfinished = unfinished_runs_as_lines(catalog, command.wanted, command.labels)
    found = _plan(command, known)
    placement = placement_without_starting(command.machines(found.shards))
    found_estimate = estimate_of_dry_run(command, found.shards, startup)
    _print_price_note(_price_note(command, placement.device))
    text = plan_as_text(found, found_estimate, placement.as_text())
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
        print_start(options.input, options.output)
        print_line(f"run {unfinished.run_id} of a command that was cut off is finished first")
        del known  # it takes a third of a gigabyte for ten million objects
        placed = _start_ray(command, unfinished, startup)
        published += execute_run(command, unfinished, placed, writer, startup)
        refuse_without_progress(published, writer, unfinished.run_id)
        startup = Startup()  # for the run that may follow
    if published.ended is not None:
        return published, left_out_as_text(unfinished.left_out if unfinished else {})
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
    if not published.reports:  # no unfinished run began the log
        print_start(options.input, options.output)
    print_plan_notices(options, found, writer.catalog.committed_runs())
    run = make_run(command.output, found, command.wanted.canaries)
    startup.end(LISTING)
    known_runs = writer.catalog.labelling_runs()
    if not run.shards:
        record_gone_objects(command.output, known_runs, command.labels.source, found.gone)
    if run.shards:
        if spent := spent_before(command.budget, published.images, run.shards.objects):
            return published + spent, left_out_as_text(found.left_out, found.first_left_out)
        placed = _start_ray(command, run, startup)
        writer.begin_writing()  # a run that does not fit on the machines leaves nothing
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
        refuse_without_progress(published, writer, run.run_id)
    return published, left_out_as_text(found.left_out, found.first_left_out)


def _start_ray(command: Command, run: Run, startup: Startup) -> Placed:
    """Start or join Ray, and place the run on it. Raises InputError if it does not fit there."""
    if missing := sandbox.why_absent():  # before Ray starts threads; workers log their own
        print_line(f"images are decoded without a sandbox on this machine: {missing}")
    request = command.machines(run.shards)
    precision = offered_precision(
        command.labels.model,
        command.detector.precisions,
        command.options.precision if run.precision == "auto" else run.precision,
    )
    if run.is_resumed:
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
    print_line(f"starting Ray and the model on {where}")
    placement = start_or_join_ray(request, command.output, first, access)
    count = command.options.batch_size or run.count
    if command.options.batch_size and command.detector.is_alone:
        print_line(f"--batch-size: images of {command.labels.model} go one by one")
    elif command.options.batch_size and placement.device == "cpu":
        print_line("--batch-size is for GPUs: on CPUs images go one by one")
    count = 1 if command.detector.is_alone else count
    computation = computation_of_detectors(placement, precision, count, bool(request.address))
    startup.end(RAY)
    note = _price_note(command, placement.device)
    _print_price_note(note)
    return Placed(placement, computation, note)


def _price_note(command: Command, device: str) -> str:
    """How the machines of the run differ from those that are priced. It is "" if they do not."""
    local = not command.options.address
    gpus = torch.cuda.device_count() if local else 0
    if local and command.options.dry_run:  # without a probe no Ray runs
        here = this_machine()
        nodes = [replace(here, resources={**here.resources, "GPU": gpus})]
    else:
        nodes = list(alive_nodes().values())
    name = torch.cuda.get_device_name() if gpus else ""
    return price_notice(command.options.rates(), nodes, device, name)


def _print_price_note(note: str) -> None:
    if note:
        print_line(f"the prices are of another machine: {note}")


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
        run.run_id,
        command.labels.model,
        command.labels.fingerprint,
        command.boxes.labels(len(command.detector.labels)),
    )
    plan = plan_url(options.output, run.run_id)
    settings = flow_settings(command, plan, target.staging, placed)
    print_line(f"run {run.run_id}: {target.model} in {placed.computation.as_text()}")
    if command.sha256 is None:
        print_line("the weights are random: the boxes will mean nothing")
    announced = _announced_run(command, run, placed)
    with command.notifier.run(announced), writer.explain_takeover(), explained_failures():
        rates = replace(options.rates(), note=placed.price_note)
        most = layout.detectors.most
        tally = Tally(cpus=measured_cpus(options.machines()), startup=startup)
        nodes = NodeMeter(ray.nodes, startup.began)
        announced.so_far = lambda: figures_so_far(tally, nodes, rates)
        alone = nullcontext() if options.machines().address else ray_data_without_helpers()
        with (
            alone,
            nodes,
            _drop_unproven_staging(writer, run.run_id),
            RunMetrics(options.output, run, tally, nodes, rates, most) as metrics,
        ):
            past = command.past_reports() if command.budget.is_limited else []
            command.budget.begin_run(nodes)
            clock = RunClock(command.budget, tally, past)
            files_first, left = command.budget.is_limited, clock.seconds_left
            all_done = label_images(run.shards, settings, tally, left, proof, files_first)
            ended = None if all_done else clock.reason()
            labelled = StagedRun(run, target, command.labels, layout, proof, ended)
            meters = Meters(tally, nodes, rates)
            published = publish_run(labelled, meters, writer, options.page)
            command.budget.end_run()
            if published.reports:
                announced.publish(published.reports[0], published.files)
            elif published.ended is not None:
                announced.keep(published.ended)
                metrics.keep()
    if published.ended is not None and not published.images and not tally.images:
        return replace(published, is_stuck=True)
    return published


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


def _announced_run(command: Command, run: Run, placed: Placed) -> AnnouncedRun:
    """What is told of a run that begins."""
    return AnnouncedRun(
        run.run_id,
        command.labels.model,
        command.labels.fingerprint,
        placed.computation.as_text(),
        run.is_resumed,
        run.shards.objects,
        run.shards.size,
    )
