"""detect: PREPARED -> DETECTED, in an actor that holds the model on its device."""

import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.errors import CheckpointError
from model.host_memory import keep_freed_memory
from model.predictor import Predictor
from model.zoo import create_model
from pipeline.isolation.journal import CrashJournal
from pipeline.schema import DETECTED, OK
from pipeline.stages.recovery import Batch, RecoveringDetector

# Images whose sides round up to the same multiple of this number of pixels share a batch. At
# 800 x 1066 the padding is then at most 1/13 of either side.
BUCKET = 64
# Concurrent calls of one detector. With one call, an H100 labelled 313 images/s of the 534 that it
# computes (2026-11-26): it was idle from the end of a call to the first images of the next call.
CPU_CALLS, GPU_CALLS = 1, 2
BATCHES_PER_CALL = 4  # several, so that images of similar size can share a batch
TOP = 100  # detections that are kept per image, as published
# Time limit of a batch. It also holds for the first batch of a shape, which compiles kernels.
DETECT_SECONDS = 600.0


@dataclass(frozen=True)
class DetectorSpec:
    """The parameters from which an actor builds its detector."""

    model: str
    weights: str | None
    device: str  # "cpu" or "cuda"
    precision: str
    score_threshold: float
    batch_size: int  # maximum number of images in one forward pass
    session: str  # id of the command, for its crash journal (journal.py)
    sha256: str | None = None  # digest of the weights that the driver found; None if random


class Detector:
    """Detects objects in tables of prepared images. Failed rows pass through unchanged.

    On a GPU two calls may run at the same time. One call computes while the other loads its first
    images or passes on its last boxes.
    """

    def __init__(self, spec: DetectorSpec):
        if spec.device == "cpu":  # Ray allows only one thread to an actor with a share of a CPU
            torch.set_num_threads(os.cpu_count() or 1)
            keep_freed_memory()
        self.spec = spec
        self.refusal: CheckpointError | None = None
        try:
            net = create_model(
                spec.model,
                spec.weights,
                spec.device,
                spec.precision,
                padding="invariant",
                sha256=spec.sha256,
            )
        except CheckpointError as error:
            # The first call raises it: of an error in a constructor, Ray prints pages.
            self.refusal = error
            return
        self.predictor = Predictor(net, spec.device, TOP)
        journal = CrashJournal(spec.session, DETECT_SECONDS)
        self.clock, self.last_finished = threading.Lock(), 0.0
        self.attempts = RecoveringDetector(
            self.predictor, journal, spec.score_threshold, spec.batch_size
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """Convert a PREPARED table to a DETECTED table with the same rows.

        Raises CheckpointError if the weights are missing, or other ones than the command found.
        """
        if self.refusal is not None:
            raise self.refusal
        with self.attempts.calls.shared():
            return self._detect(table)

    def _detect(self, table: pa.Table) -> pa.Table:
        rows = table.drop_columns(["pixels", "rows", "columns"]).to_pylist()
        for row in rows:
            row.update(boxes=[], detect_seconds=0.0)
        sizes = _sizes(table)
        decoded = {i: sizes[i] for i, row in enumerate(rows) if row["status"] == OK}
        under_way: deque[Batch] = deque()
        began = time.perf_counter()
        for group in self._form_batches(decoded):
            images = [_image(table, i, sizes[i]) for i in group]
            under_way.append(self.attempts.submit([rows[i] for i in group], images))
            # A batch that may end this process again is computed alone, so that no other batch is
            # blamed for it.
            ahead = 0 if under_way[-1].pending is None else self.predictor.ahead
            while len(under_way) > ahead:
                began = self._finish_batch(under_way.popleft(), began)
        while under_way:
            began = self._finish_batch(under_way.popleft(), began)
        now = datetime.now(UTC)
        most = self.attempts.most
        limit = most if most < self.spec.batch_size else None
        for row in rows:
            row.update(processed_at=now, batch_limit=limit)
        return pa.Table.from_pylist(rows, schema=DETECTED)

    def _form_batches(self, sizes: dict[int, tuple[int, int]]) -> Iterator[list[int]]:
        """Yield the indices of images of similar size, in groups of at most `most` images.

        The detector may lower `most` while this generator runs.
        """
        buckets: dict[tuple[int, ...], list[int]] = {}
        for index, size in sizes.items():
            buckets.setdefault(tuple(-(-side // BUCKET) for side in size), []).append(index)
        for bucket in buckets.values():
            bucket.sort(key=lambda index: sizes[index])
            start = 0
            while start < len(bucket):
                group = bucket[start : start + self.attempts.most]
                yield group
                start += len(group)

    def _finish_batch(self, batch: Batch, began: float) -> float:
        """Finish a batch, distribute its seconds over its images, and return the current time.

        The seconds are the device's computing time. CPUs do not report it. Then the seconds are the
        time since `began`, or since any call finished the batch before, if that was later.
        """
        device_seconds = self.attempts.finish(batch)
        with self.clock:
            now = time.perf_counter()
            elapsed, self.last_finished = now - max(began, self.last_finished), now
        seconds = elapsed if device_seconds is None else device_seconds
        for row in batch.rows:
            row["detect_seconds"] = seconds / len(batch.rows)
        return now


def _sizes(table: pa.Table) -> list[tuple[int, int]]:
    """Rows and columns of each prepared image, in pixels."""
    return list(zip(table["rows"].to_pylist(), table["columns"].to_pylist(), strict=True))


def _image(table: pa.Table, index: int, size: tuple[int, int]) -> Tensor:
    """The image of a row as (rows, columns, 3) uint8, a view of the table's read-only memory."""
    flat = np.frombuffer(table["pixels"][index].as_buffer(), np.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(flat).view(*size, 3)
