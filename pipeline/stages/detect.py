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

from model.host_memory import keep_freed_memory
from model.predictor import Predictor
from model.zoo import create_model
from pipeline.isolation.journal import CrashJournal
from pipeline.schema import DETECTED, OK
from pipeline.stages.recovery import Batch, RecoveringDetector

# Pictures whose sides round up to the same multiple of this travel in one batch: at 800 x 1066 the
# padding is then at most 1/13 of either side.
BUCKET = 64
# Calls of one detector at a time. With one, an H100 labelled 313 images/s of the 534 that it
# computes (2026-11-26): it stood still from the end of a call to the first pictures of the next.
CPU_CALLS, GPU_CALLS = 1, 2
BATCHES_PER_CALL = 4  # so that pictures of like size meet
TOP = 100  # detections kept of an image, as published
DETECT_SECONDS = 600.0  # for a batch, the first of a shape too, for which kernels are compiled


@dataclass(frozen=True)
class DetectorSpec:
    """All that an actor needs to build its detector."""

    model: str
    weights: str | None
    device: str  # "cpu" or "cuda"
    precision: str
    score_threshold: float
    batch_size: int  # pictures in one forward pass, at most
    session: str  # of one command, see notes.py


class Detector:
    """Labels tables of prepared pictures; failed rows pass through.

    Where it is on a GPU two calls may run at once: one computes while the other takes its first
    pictures in and hands its last boxes on.
    """

    def __init__(self, spec: DetectorSpec):
        if spec.device == "cpu":  # Ray allows an actor with a share of a CPU one thread
            torch.set_num_threads(os.cpu_count() or 1)
            keep_freed_memory()
        self.spec = spec
        net = create_model(
            spec.model, spec.weights, spec.device, spec.precision, padding="invariant"
        )
        self.predictor = Predictor(net, spec.device, TOP)
        notes = CrashJournal(spec.session, DETECT_SECONDS)
        self.clock, self.last_finished = threading.Lock(), 0.0
        self.attempts = RecoveringDetector(
            self.predictor, notes, spec.score_threshold, spec.batch_size
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """PREPARED -> DETECTED, row for row."""
        with self.attempts.turns.shared():
            return self._detect(table)

    def _detect(self, table: pa.Table) -> pa.Table:
        rows = table.drop_columns(["pixels", "rows", "columns"]).to_pylist()
        for row in rows:
            row.update(boxes=[], detect_seconds=0.0)
        sizes = _sizes(table)
        pictures = {i: sizes[i] for i, row in enumerate(rows) if row["status"] == OK}
        under_way: deque[Batch] = deque()
        began = time.perf_counter()
        for group in self._form_batches(pictures):
            images = [_image(table, i, sizes[i]) for i in group]
            under_way.append(self.attempts.submit([rows[i] for i in group], images))
            # What may end this process again is computed alone, so that nothing else is blamed.
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

    def _form_batches(self, pictures: dict[int, tuple[int, int]]) -> Iterator[list[int]]:
        """Indices of pictures of like size, at most `most` together, which may fall meanwhile."""
        buckets: dict[tuple[int, ...], list[int]] = {}
        for index, size in pictures.items():
            buckets.setdefault(tuple(-(-side // BUCKET) for side in size), []).append(index)
        for bucket in buckets.values():
            bucket.sort(key=lambda index: pictures[index])
            start = 0
            while start < len(bucket):
                group = bucket[start : start + self.attempts.most]
                yield group
                start += len(group)

    def _finish_batch(self, batch: Batch, began: float) -> float:
        """Label a batch and share out its seconds; the time now.

        They are those that the device computed. Where it does not tell, as CPUs do not, they are
        those since `began`, and since any call finished one before it.
        """
        device_seconds = self.attempts.finish(batch)
        with self.clock:
            now = time.perf_counter()
            took, self.last_finished = now - max(began, self.last_finished), now
        seconds = took if device_seconds is None else device_seconds
        for row in batch.rows:
            row["detect_seconds"] = seconds / len(batch.rows)
        return now


def _sizes(table: pa.Table) -> list[tuple[int, int]]:
    """Rows and columns of each picture as it was prepared."""
    return list(zip(table["rows"].to_pylist(), table["columns"].to_pylist(), strict=True))


def _image(table: pa.Table, index: int, size: tuple[int, int]) -> Tensor:
    """The picture of a row as (rows, columns, 3) uint8, in the table's memory, to be read alone."""
    flat = np.frombuffer(table["pixels"][index].as_buffer(), np.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(flat).view(*size, 3)
