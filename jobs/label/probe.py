"""The probe of `label --dry-run`: label a sample of the plan, write nothing, and measure.

The probe is the dataflow itself, with the workers that the run would have, so that what they share
(cores, memory, the network) is in its rate. A machine without a cluster starts a Ray of its own.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import ray

from jobs.accounting.estimate import Estimate
from jobs.accounting.node_hours import CPU, GPU, NodeMeter
from jobs.accounting.plurals import counted
from jobs.accounting.probe import estimate_by_probe
from jobs.accounting.startup import Startup
from jobs.cluster.computation import computation_of_detectors
from jobs.cluster.ray_internals import ray_data_without_helpers
from jobs.cluster.start import place_for_probe
from jobs.label.budget_options import PROBED_IMAGES
from jobs.label.command import Command, Placed, flow_settings
from jobs.label.execution import longest_wait, reason_of
from jobs.label.log.lines import print_line
from model.zoo import offered_precision
from pipeline.dataflow import probe_shards
from pipeline.isolation.watchdog import end_when_stalled
from pipeline.plan.sample import sample_plan
from pipeline.plan.shards import Shards
from pipeline.schema import Receipt
from pipeline.storage.clock import steady_time
from pipeline.storage.errors import CommandFailed, InputError

# A probe ends so long after its first block at the latest. Its images are in random order.
MOST_SECONDS = 60.0


def estimate_of_dry_run(command: Command, shards: Shards, startup: Startup) -> Estimate | None:
    """The estimate of a planned run: from a probe if the command wants one, else from earlier runs.

    Without --probe, a plan whose model has labelled nothing in OUTPUT yet is probed.
    """
    known = command.estimate(shards)
    wanted = command.options.probe
    images = (0 if known else PROBED_IMAGES) if wanted is None else wanted
    if not images or not len(shards):
        return known
    return _probe(command, shards, images, startup) or known


def _probe(command: Command, shards: Shards, images: int, startup: Startup) -> Estimate | None:
    """Label a sample of the plan. None, with a line that says why, if it is too small."""
    sample = sample_plan(shards, images)
    drawn = sum(
        len(one.members) if one.kind == "files" else one.limit or 0 for one in sample.shards
    )
    most = "" if all(one.kind == "files" for one in sample.shards) else "at most "
    print_line(
        f"labelling a probe of {most}{counted(drawn, 'image')} to measure what the run will take, "
        f"{MOST_SECONDS:.0f} s at most once its first block is done; nothing is written (--probe 0 "
        "leaves it out)"
    )
    placed = _place(command, shards)
    settings = flow_settings(command, "", "", placed)
    local = not command.options.machines().address
    alone = ray_data_without_helpers() if local else nullcontext()
    receipts: list[Receipt] = []

    def seconds_left() -> float:
        behind = steady_time() - receipts[0].finished_at if receipts else 0.0
        return MOST_SECONDS - behind

    with _explained_failures(), alone, NodeMeter(ray.nodes, startup.began) as nodes:
        flow = probe_shards(sample.shards, settings)
        for receipt in end_when_stalled(flow, longest_wait(settings), seconds_left):
            now = steady_time()
            is_plausible = local and startup.began <= receipt.finished_at <= now
            receipts.append(receipt if is_plausible else replace(receipt, finished_at=now))
        node_hours, hours = nodes.read()
    if not receipts:
        return None
    _print_failures(receipts)
    first = receipts[0].finished_at - startup.began
    count = {kind: node_hours.get(kind, 0.0) / hours for kind in (GPU, CPU)}
    found = estimate_by_probe(receipts, sample, first, count, command.options.rates())
    if found is None:
        print_line(
            "the probe gives no estimate: it has one block alone, or does not say how many images "
            "the archives hold"
        )
    return found


def _print_failures(receipts: Sequence[Receipt]) -> None:
    """Print how many images of the probe failed, by status."""
    failed = sum((Counter(receipt.failed) for receipt in receipts), Counter[str]())
    if not failed:
        return
    images = sum(receipt.images for receipt in receipts)
    statuses = ", ".join(f"{count} {status}" for status, count in failed.most_common())
    print_line(
        f"{failed.total()} of {counted(images, 'image')} of the probe failed, and the same share "
        f"of the run would: {statuses}"
    )


@contextmanager
def _explained_failures() -> Iterator[None]:
    """Convert all errors but those of a line of their own to CommandFailed."""
    try:
        yield
    except (InputError, CommandFailed):
        raise
    except Exception as error:
        raise CommandFailed(
            f"the probe failed, and so would the run: {reason_of(error)}. --probe 0 leaves it out"
        ) from error


def _place(command: Command, shards: Shards) -> Placed:
    """Where the run would compute."""
    placement = place_for_probe(command.machines(shards))
    precision = offered_precision(
        command.labels.model, command.detector.precisions, command.options.precision
    )
    count = 1 if command.detector.is_alone else command.options.batch_size
    cluster = bool(command.options.machines().address)
    return Placed(placement, computation_of_detectors(placement, precision, count, cluster))
