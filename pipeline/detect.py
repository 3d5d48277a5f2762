"""detect: PREPARED -> DETECTED, in an actor that holds the model on its device."""

import hashlib
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.host_memory import keep_freed_memory
from model.postprocess import Detections
from model.predictor import Pending, Predictor
from model.zoo import create_model
from pipeline.notes import Notes
from pipeline.schema import DETECTED, DETECTOR_ERROR, OK, TIMED_OUT, WORKER_CRASH

# Pictures whose sides round up to the same multiple of this travel in one batch: at 800 x 1066 the
# padding is then at most 1/13 of either side.
BUCKET = 64
TOP = 100  # detections kept of an image, as published
ATTEMPTS = 2  # at a single picture over which the process ended: it may not have been the cause
DETECT_SECONDS = 600.0  # for a batch, the first of a shape too, for which kernels are compiled

Row = dict[str, Any]


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


@dataclass
class Batch:
    """Pictures that were submitted together, and what became of that so far."""

    key: str  # that its note bears
    rows: list[Row]
    images: list[Tensor]
    pending: Pending | Exception | None  # None: it ended a process before, and was not submitted


class Detector:
    """Labels tables of prepared pictures; failed rows pass through."""

    def __init__(self, spec: DetectorSpec):
        if spec.device == "cpu":  # Ray allows an actor with a share of a CPU one thread
            torch.set_num_threads(os.cpu_count() or 1)
            keep_freed_memory()
        self.spec = spec
        self.most = spec.batch_size  # pictures at once; less where memory does not hold as many
        net = create_model(
            spec.model, spec.weights, spec.device, spec.precision, padding="invariant"
        )
        self.predictor = Predictor(net, spec.device, TOP)
        self.notes = Notes(spec.session, DETECT_SECONDS)

    def __call__(self, table: pa.Table) -> pa.Table:
        """PREPARED -> DETECTED, row for row."""
        rows = table.drop_columns(["pixels", "rows", "columns"]).to_pylist()
        for row in rows:
            row.update(boxes=[], detect_seconds=0.0)
        sizes = _sizes(table)
        pictures = {i: sizes[i] for i, row in enumerate(rows) if row["status"] == OK}
        under_way: deque[Batch] = deque()
        began = time.perf_counter()
        for group in self._groups(pictures):
            images = [_image(table, i, sizes[i]) for i in group]
            under_way.append(self._submit([rows[i] for i in group], images))
            # What may end this process again is computed alone, so that nothing else is blamed.
            ahead = 0 if under_way[-1].pending is None else self.predictor.ahead
            while len(under_way) > ahead:
                began = self._finish(under_way.popleft(), began)
        while under_way:
            began = self._finish(under_way.popleft(), began)
        now = datetime.now(UTC)
        limit = self.most if self.most < self.spec.batch_size else None
        for row in rows:
            row.update(processed_at=now, batch_limit=limit)
        return pa.Table.from_pylist(rows, schema=DETECTED)

    def _groups(self, pictures: dict[int, tuple[int, int]]) -> Iterator[list[int]]:
        """Indices of pictures of like size, at most `most` together, which may fall meanwhile."""
        buckets: dict[tuple[int, ...], list[int]] = {}
        for index, size in pictures.items():
            buckets.setdefault(tuple(-(-side // BUCKET) for side in size), []).append(index)
        for bucket in buckets.values():
            bucket.sort(key=lambda index: pictures[index])
            start = 0
            while start < len(bucket):
                group = bucket[start : start + self.most]
                yield group
                start += len(group)

    def _submit(self, rows: list[Row], images: list[Tensor], again: bool = False) -> Batch:
        """Begin a batch, unless a process ended over it before and it is not tried `again`."""
        key = _key(rows)
        if not again and self.notes.unfinished(key):
            return Batch(key, rows, images, None)
        self.notes.begin(key)
        sizes = torch.tensor([(row["height"], row["width"]) for row in rows])
        try:
            return Batch(key, rows, images, self.predictor.submit(images, sizes))
        except (RuntimeError, MemoryError) as error:  # torch's: memory and kernel failures
            _end_where_lasting(error)
            # Its traceback holds on to the tensors of the attempt.
            return Batch(key, rows, images, error.with_traceback(None))

    def _finish(self, batch: Batch, began: float) -> float:
        """Label a batch and share out the seconds since `began`; the time now."""
        self._label(batch)
        now = time.perf_counter()
        for row in batch.rows:
            row["detect_seconds"] = (now - began) / len(batch.rows)
        return now

    def _label(self, batch: Batch) -> None:
        """Fill in each row's boxes. A batch that fails is halved until the culprit is alone.

        Where it was too large for the memory, later ones are no larger than its halves.
        """
        if batch.pending is None:
            self._one_by_one(batch)
            return
        rows, images, error = batch.rows, batch.images, batch.pending
        if isinstance(error, Pending):
            try:
                self._fill(rows, error.result())
                self.notes.end(batch.key)
                return
            except RuntimeError as late:
                _end_where_lasting(late)
                error = late.with_traceback(None)
        self.notes.end(batch.key)
        half = len(rows) // 2
        if _is_of_memory(error):
            self.predictor.give_memory_back()
            self.most = min(self.most, max(half, 1))
        if not half:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            rows[0].update(status=DETECTOR_ERROR, error=reason)
            return
        self._label(self._submit(rows[:half], images[:half]))
        self._label(self._submit(rows[half:], images[half:]))

    def _one_by_one(self, batch: Batch) -> None:
        """Pictures over which a process ended, in this command: that of a single one is told."""
        if len(batch.rows) > 1:
            for row, image in zip(batch.rows, batch.images, strict=True):
                self._label(self._submit([row], [image]))
            self.notes.end(batch.key)
        elif self.notes.unfinished(batch.key) < ATTEMPTS:
            self._label(self._submit(batch.rows, batch.images, again=True))
        else:
            stuck = self.notes.stood_still(batch.key)
            reason = f"took more than {DETECT_SECONDS:g} s" if stuck else "ended its process"
            batch.rows[0].update(
                status=TIMED_OUT if stuck else WORKER_CRASH,
                error=f"the detector {reason}, {ATTEMPTS} times",
            )

    def _fill(self, rows: list[Row], found: Detections) -> None:
        """Boxes from the threshold up (at 0: the best TOP) into their rows."""
        scores, labels, boxes = (t.numpy() for t in (found.scores, found.labels, found.boxes))
        for index, row in enumerate(rows):
            keep = np.flatnonzero(scores[index] >= self.spec.score_threshold)
            row["boxes"] = [
                {
                    "label_id": int(labels[index, k]),
                    "score": float(scores[index, k]),
                    **dict(zip(_CORNERS, boxes[index, k].tolist(), strict=True)),
                }
                for k in keep
            ]


def _key(rows: list[Row]) -> str:
    """A name of these pictures, by their places."""
    places = "\0".join(f"{row['shard']}\0{row['index_in_shard']}" for row in rows)
    return hashlib.sha256(places.encode()).hexdigest()[:24]


def _end_where_lasting(error: Exception) -> None:
    """End this process where all that it asks of its device will fail from now on.

    After an illegal access CUDA answers every call with that error. Ray starts the detector anew.
    """
    if isinstance(error, torch.AcceleratorError) and not _is_of_memory(error):
        print(f"the device failed, and the detector ends: {error}", file=sys.stderr)
        os._exit(1)


def _is_of_memory(error: Exception) -> bool:
    """Whether a host or a device had too little; torch has no type of its own for hosts."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "allocate memory" in str(error) or "out of memory" in str(error)


_CORNERS = ("x_min", "y_min", "x_max", "y_max")


def _sizes(table: pa.Table) -> list[tuple[int, int]]:
    """Rows and columns of each picture as it was prepared."""
    return list(zip(table["rows"].to_pylist(), table["columns"].to_pylist(), strict=True))


def _image(table: pa.Table, index: int, size: tuple[int, int]) -> Tensor:
    """The picture of a row as (rows, columns, 3) uint8, in the table's memory, to be read alone."""
    flat = np.frombuffer(table["pixels"][index].as_buffer(), np.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(flat).view(*size, 3)
