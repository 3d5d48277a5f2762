"""One `label` command: its options, and the requests made from them."""

import secrets
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from jobs.accounting.budget import Budget
from jobs.accounting.estimate import RUNS, Estimate, estimate
from jobs.boxes.choice import BoxChoice, choose_boxes, named_classes
from jobs.boxes.options import label_words
from jobs.boxes.pairs import recorded_thresholds
from jobs.cluster.placement import Placement
from jobs.cluster.request import ClusterRequest, memory_of_detector
from jobs.label.canaries.choice import Canaries, choose_canaries
from jobs.label.canaries.images import prepare_canaries
from jobs.label.fingerprint import fingerprint
from jobs.label.notify.notifier import Notifier
from jobs.label.options import LabelOptions
from jobs.label.planning import PlanRequest, plan_request
from jobs.output.known_objects import LabelRequest
from jobs.report.reports import past_reports
from model.computation import Computation
from model.description import Description
from model.detectors import describe
from model.named import RANDOM
from model.zoo import offered_precision
from pipeline.dataflow import FlowSettings
from pipeline.plan.shards import Shards
from pipeline.stages.detect import CPU_THREADS, Detector, DetectorSpec
from pipeline.stages.prepare import Preparer
from pipeline.stages.tiling import Tiling
from pipeline.storage.files import canonical_url


@dataclass(frozen=True)
class Command:
    """One `label` command: its options, who is told of it, and the requests made from them."""

    options: LabelOptions
    notifier: Notifier
    detector: Description
    tiling: Tiling | None
    boxes: BoxChoice  # which boxes of the detector are kept, and of which classes
    wanted: PlanRequest  # the images to label
    labels: LabelRequest  # the model that labels them
    budget: Budget
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
        memory = memory_of_detector(self.options.model, self.detector.weight_bytes)
        return replace(self.options.machines(), images=shards.images, memory=memory)

    def estimate(self, shards: Shards) -> Estimate | None:
        """The estimated time and cost of `shards`, from earlier runs of the same model."""
        return estimate(self.past_reports(), shards.size, self.options.rates(), *shards.loose)

    def past_reports(self) -> list[dict[str, Any]]:
        """The reports of the newest runs of the same model, oldest first."""
        return past_reports(self.output, self.labels.fingerprint, RUNS)


def read_command(options: LabelOptions, notifier: Notifier, budget: Budget) -> Command:
    """Make the command, and read its model.

    Raises CheckpointError if weights are missing or do not fit.
    """
    assert options.model is not None
    detector = describe(options.model, options.weights)
    offered_precision(options.model, detector.precisions, options.precision)
    boxes = choose_boxes(options, named_classes(detector.labels), options.score_threshold)
    decided = boxes.as_document()
    tiling = options.tiling(detector.resize)
    options.check_decode_of(options.model, detector.is_alone)
    choices: dict[str, Any] = {"boxes": decided} if decided else {}
    if tiling is not None:
        choices["tiles"] = asdict(tiling)
    if options.leaves_jpegs:
        choices["decode"] = options.decode
    mark = fingerprint(
        detector.identity,
        detector.weights,
        options.score_threshold,
        choices,
    )
    given = asdict(options)
    canaries = choose_canaries(options, options.output, mark, detector.labels, detector.resize)
    digest = None if canaries is None else canaries.digest
    return Command(
        options,
        notifier,
        detector,
        tiling,
        boxes,
        replace(plan_request(options), canaries=digest),
        LabelRequest(
            canonical_url(options.input),
            options.model,
            min([options.score_threshold, *recorded_thresholds(given)]),
            mark,
            options.relabel,
            options.retry_failed,
            (options.format, options.image_column, options.id_column),
            " ".join(label_words(given)),
        ),
        budget,
        canaries,
    )


@dataclass(frozen=True)
class Placed:
    """Where a run computes, and with what."""

    placement: Placement
    computation: Computation
    price_note: str = ""  # how the machines differ from those that are priced


def flow_settings(command: Command, plan: str, staging: str, placed: Placed) -> FlowSettings:
    """The settings of the dataflow, with the URLs of the plan and of the staging folder."""
    options, resize = command.options, command.detector.resize
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
        rules=command.boxes.rules,
        tiling=command.tiling,
        canaries=()
        if command.canaries is None
        else prepare_canaries(
            command.canaries.reference,
            resize,
            enlarge=not placed.placement.layout.detectors.num_gpus,
        ),
        measures_gpu=True,
        preparer=partial(Preparer, resize, enlarge=False, tiling=command.tiling)
        if options.leaves_jpegs
        else None,
    )
    return FlowSettings(
        plan,
        staging,
        resize,
        Detector,
        (spec,),
        placed.placement.layout,
        command.tiling,
        options.leaves_jpegs,
    )
