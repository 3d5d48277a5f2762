"""detect: PREPARED -> DETECTED, in an actor that holds the model on its device."""

import hashlib
import os
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from model.computation import computation_here
from model.cpu_threads import use_cpu_threads
from model.description import Load
from model.detectors import load
from model.errors import CheckpointError, UnknownName
from model.host_memory import keep_freed_memory
from model.jpeg import Jpeg, Refused, check_decoder
from pipeline.carry.columns import carried_part, joined
from pipeline.gpu.meter import start_gpu_meter
from pipeline.gpu.reading import GPU
from pipeline.isolation.journal import CrashJournal
from pipeline.schema import BOX, DETECTED, ENCODED, OK
from pipeline.stages.batcher import Batcher
from pipeline.stages.box_rules import KEEP_ALL, BoxRules
from pipeline.stages.canaries import Canary, CanaryRunner
from pipeline.stages.joining import join_views
from pipeline.stages.recovery import Image, Outcome, RecoveringDetector
from pipeline.stages.tiling import Tiling, View, views
from pipeline.storage.errors import CommandFailed

# Concurrent calls of one detector. On a GPU their images fill the batches together: with COCO's
# sizes and 8 images a batch, ten calls of 100 images fill 97 % of the places.
CPU_CALLS, GPU_CALLS = 2, 10
# Threads of a detector on CPUs; the bits of an image depend on their number. Threads wait for each
# other: on two cores, two detectors with one thread each make 1.44 times the images/s of one with
# two (shapes-tiny), 1.05 times (single scale) or 1.02 times (multi-scale; 2026-11-27).
CPU_THREADS = 1
TOP = 100  # detections that are kept per image, or view of an image, as published
# Time limit of a batch. It also holds for the first batch of a form, which compiles kernels.
DETECT_SECONDS = 600.0


Prepare = Callable[[pa.Table], Iterator[pa.Table]]  # ENCODED -> PREPARED


@dataclass(frozen=True)
class DetectorSpec:
    """The parameters from which an actor builds its detector."""

    model: str
    weights: str | None
    device: str  # "cpu" or "cuda"
    precision: str
    score_threshold: float
    count: int | None  # images of a batch on a GPU; None: the model's own number
    session: str  # id of the command, for its crash journal (journal.py)
    sha256: str | None = None  # digest of the weights that the driver found; None if random
    threads: int = 1  # threads of a CPU that compute one image
    calls: int = 1  # concurrent calls, see Pool
    rules: BoxRules = KEEP_ALL  # which boxes are kept of those that reach the threshold
    tiling: Tiling | None = None  # how images were tiled; None if they were not
    canaries: tuple[Canary, ...] = ()  # images of known boxes, see canaries.py
    measures_gpu: bool = False  # whether it reports use, memory and power of its GPU
    # Makes what prepares JPEGs that the device refuses to decode, ENCODED -> PREPARED. None if all
    # images come with their pixels.
    preparer: Callable[[], Prepare] | None = None


class Detector:
    """Detects objects in tables of prepared images. Failed rows pass through unchanged.

    Several calls may run at the same time; their images share batches.
    """

    def __init__(self, spec: DetectorSpec):
        self.spec = spec
        self.refusal: CheckpointError | CommandFailed | None = None
        self._use_threads()
        name = f"{socket.gethostname()}, process {os.getpid()} {uuid.uuid4().hex[:12]}"
        self.meter = start_gpu_meter(spec.device, name) if spec.measures_gpu else None
        where = "" if self.meter is None else f"{self.meter.gpu.name} {self.meter.gpu.uuid} of "
        if spec.device == "cpu":
            keep_freed_memory()
        try:
            self.predictor = load(
                spec.model,
                Load(spec.weights, spec.sha256, spec.device, spec.precision, spec.count, TOP),
            )
        except (CheckpointError, UnknownName) as error:
            # The first call raises it: of an error in a constructor, Ray prints pages.
            self.refusal = CheckpointError(str(error)) if isinstance(error, UnknownName) else error
            return
        if spec.preparer is not None:
            try:
                check_decoder(self.predictor.device)
            except Refused as error:
                self.refusal = CommandFailed(
                    f"--decode gpu: torchvision decodes no JPEG on {spec.device} here ({error}); "
                    "--decode cpu labels on"
                )
                return
        self._prepare: Prepare | None = None
        self._preparing = threading.Lock()
        self.computation = computation_here(
            spec.device, spec.precision, spec.threads, spec.count
        ).as_text()
        journal = CrashJournal(spec.session, DETECT_SECONDS)
        of_views, self.rules = spec.rules.for_views() if spec.tiling else (spec.rules, KEEP_ALL)
        detector = RecoveringDetector(self.predictor, journal, spec.score_threshold, of_views)
        self.batcher = Batcher(detector, spec.calls, self._use_threads)
        self.runner = CanaryRunner(spec.canaries, f"{where}{name}", self.computation)

    def _use_threads(self) -> None:
        if self.spec.device == "cpu":
            use_cpu_threads(self.spec.threads)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Convert a PREPARED table to a DETECTED table with the same rows.

        JPEGs that the device does not decode are prepared by a confined child, and detected then.

        Raises CheckpointError if the weights are missing, or other ones than the command found,
        OutOfMemory if memory does not hold a batch, and CommandFailed if no JPEG can be decoded.
        """
        if self.refusal is not None:
            raise self.refusal
        self.runner.compute_first(self.batcher.detect)
        prepared = _rows_to_detect(table)
        outcomes = self._detect(table, prepared)
        refused = [row for row in prepared if outcomes[row].is_refused]
        if refused:
            table = _replaced(table, refused, self._prepare_refused(table.take(refused)))
            prepared = _rows_to_detect(table)
            outcomes |= self._detect(table, sorted({*refused} & {*prepared}))
        whole = [outcomes[row] for row in prepared]
        detected = _detected(table, prepared, whole, refused, self.computation)
        return self._with_reports(detected) if len(detected) else detected

    def _detect(self, table: pa.Table, rows: Sequence[int]) -> dict[int, Outcome]:
        """The outcomes of these rows, and among them canaries where some are due."""
        found = [self._views(table, row) for row in rows]
        images = [image for _, own in found for image in own]
        outcomes = self.batcher.detect([*images, *self.runner.take_due_images()])
        self.runner.record(outcomes[len(images) :])
        of_views = iter(outcomes)
        return {
            row: self._join(own, list(islice(of_views, len(own))))
            for row, (own, _) in zip(rows, found, strict=True)
        }

    def _prepare_refused(self, table: pa.Table) -> pa.Table:
        """PREPARED rows of the same JPEGs, which a confined child of this process decodes."""
        with self._preparing:
            if self._prepare is None:
                assert self.spec.preparer is not None, "nobody may leave JPEGs to this detector"
                self._prepare = self.spec.preparer()
            encoded = joined(table.select(ENCODED.names), carried_part(table))
            return pa.concat_tables(self._prepare(encoded))

    def _join(self, own: Sequence[View], outcomes: Sequence[Outcome]) -> Outcome:
        """The outcome of an image with these views. That of an image without tiles is as it was."""
        outcome = outcomes[0] if len(own) == 1 else join_views(own, outcomes)
        if self.rules == KEEP_ALL:
            return outcome
        kept, labels = self.rules.select(outcome.scores, outcome.labels, outcome.boxes)
        return replace(
            outcome, scores=outcome.scores[kept], labels=labels, boxes=outcome.boxes[kept]
        )

    def _views(self, table: pa.Table, row: int) -> tuple[list[View], list[Image]]:
        """The views of a row's image, as images of their own, without copies of their pixels."""
        names = ("shard", "index_in_shard", "height", "width", "orientation", "rows", "columns")
        values = (table[name][row].as_py() for name in names)
        shard, index, height, width, orientation, rows, cols = values
        if rows is None:
            jpeg = Jpeg(_bytes(table["encoded"][row]), (height, width), orientation)
            whole = View(0, 0, height, width, height, width)
            return [whole], [Image(_key(shard, index, 0), jpeg, (height, width))]
        resize = self.predictor.resize
        tiles = views(height, width, resize, False, self.spec.tiling)[1:]
        own = [View(0, 0, height, width, rows, cols), *tiles]
        rest = _bytes(table["pixels"][row])
        images = []
        for number, view in enumerate(own):
            pixels, rest = rest[: view.bytes], rest[view.bytes :]
            key = _key(shard, index, number)
            pixels = pixels.view(view.rows, view.columns, 3)
            images.append(Image(key, pixels, (view.height, view.width)))
        return own, images

    def _with_reports(self, detected: pa.Table) -> pa.Table:
        """The table with the columns `canaries` and `gpu` in its first row."""
        reports = {
            "canaries": self.runner.text(),
            "gpu": None if self.meter is None else self.meter.read(),
        }
        for name, value in reports.items():
            field = DETECTED.field(name)
            column = pa.array([value] + [None] * (len(detected) - 1), field.type)
            detected = detected.set_column(detected.column_names.index(name), field, column)
        return detected


def _key(shard: str, index: int, view: int) -> str:
    """A name for a view that no other view of the run has."""
    number = f"\0{view}" if view else ""
    return hashlib.sha256(f"{shard}\0{index}{number}".encode()).hexdigest()[:24]


def _rows_to_detect(table: pa.Table) -> list[int]:
    """The rows of a PREPARED table that did not fail."""
    found = pc.equal(table["status"], OK).to_numpy(zero_copy_only=False)
    return [int(row) for row in np.flatnonzero(found)]


def _replaced(table: pa.Table, rows: Sequence[int], others: pa.Table) -> pa.Table:
    """The table with these rows replaced by those of another one, in their order."""
    order = np.arange(len(table))
    order[rows] = len(table) + np.arange(len(rows))
    return pa.concat_tables([table, others]).take(order)


def _bytes(data: pa.LargeBinaryScalar) -> Tensor:
    """Bytes as flat uint8, a view of the table's read-only memory."""
    flat = np.frombuffer(data.as_buffer(), np.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(flat)


def _detected(
    table: pa.Table,
    prepared: Sequence[int],
    outcomes: Sequence[Outcome],
    refused: Sequence[int],
    computation: str,
) -> pa.Table:
    """The DETECTED rows of a PREPARED table, whose rows `prepared` have these outcomes.

    `refused` are the rows that the decoder of the device refused.
    """
    counts, seconds = np.zeros(len(table), np.int32), np.zeros(len(table), np.float32)
    was_refused = np.zeros(len(table), np.bool_)
    was_refused[refused] = True
    counts[prepared] = [len(outcome.scores) for outcome in outcomes]
    seconds[prepared] = [outcome.seconds for outcome in outcomes]
    statuses, errors = table["status"].to_pylist(), table["error"].to_pylist()
    for row, outcome in zip(prepared, outcomes, strict=True):
        if outcome.failure is not None:
            statuses[row], errors[row] = outcome.failure
    made = {
        "status": pa.array(statuses, pa.string()),
        "error": pa.array(errors, pa.string()),
        "boxes": pa.ListArray.from_arrays(
            pa.array(np.append(0, counts.cumsum(dtype=np.int32))), _boxes(outcomes)
        ),
        "detect_seconds": pa.array(seconds),
        "computation": pa.array([computation] * len(table), pa.string()),
        "processed_at": pa.array([datetime.now(UTC)] * len(table), pa.timestamp("us", "UTC")),
        "is_refused": pa.array(was_refused),
        "canaries": pa.nulls(len(table), pa.string()),
        "gpu": pa.nulls(len(table), GPU),
    }
    columns = [made[name] if name in made else table[name] for name in DETECTED.names]
    return joined(pa.table(columns, schema=DETECTED), carried_part(table))


def _boxes(outcomes: Sequence[Outcome]) -> pa.StructArray:
    """The boxes of all outcomes, in their order."""
    labels = np.concatenate([np.empty(0, np.int32), *(one.labels for one in outcomes)])
    scores = np.concatenate([np.empty(0, np.float32), *(one.scores for one in outcomes)])
    corners = np.concatenate([np.empty((0, 4), np.float32), *(one.boxes for one in outcomes)])
    columns = [labels, scores, *np.ascontiguousarray(corners.T)]
    return pa.StructArray.from_arrays([pa.array(column) for column in columns], fields=list(BOX))
