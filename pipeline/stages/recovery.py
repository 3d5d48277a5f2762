"""Batches of pictures through the detector, and what becomes of those that fail.

One that raises is halved until the culprit is alone. One over which a process of this command ended
(notes.py) is taken picture by picture. Each culprit is a failed row; all others have their boxes.
"""

import hashlib
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.postprocess import Detections
from model.predictor import Pending, Predictor
from pipeline.isolation.exclusive import ExclusiveCalls
from pipeline.isolation.journal import CrashJournal
from pipeline.schema import DETECTOR_ERROR, TIMED_OUT, WORKER_CRASH

ATTEMPTS = 2  # at a single picture over which the process ended: it may not have been the cause

Row = dict[str, Any]


@dataclass
class Batch:
    """Pictures that were submitted together, and what became of that so far."""

    key: str  # that its note bears
    rows: list[Row]
    images: list[Tensor]
    pending: Pending | Exception | None  # None: it ended a process before, and was not submitted


class RecoveringDetector:
    """Fills in the boxes of rows, and the status of those that fail."""

    def __init__(
        self, predictor: Predictor, notes: CrashJournal, score_threshold: float, most: int
    ):
        self.predictor, self.notes = predictor, notes
        self.score_threshold = score_threshold
        self.turns = ExclusiveCalls()  # of calls of the detector
        self.most = most  # pictures at once; less where memory does not hold as many

    def submit(self, rows: list[Row], images: list[Tensor], again: bool = False) -> Batch:
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

    def finish(self, batch: Batch) -> float | None:
        """Fill in each row's boxes. A batch that fails is halved until the culprit is alone.

        Where it was too large for the memory, later ones are no larger than its halves. Returns the
        seconds that the device computed for what has boxes now, None where it does not tell.
        """
        if batch.pending is None:
            return self._detect_one_by_one(batch)
        rows, images, error = batch.rows, batch.images, batch.pending
        if isinstance(error, Pending):
            try:
                self._fill(rows, error.result())
                self.notes.end(batch.key)
                return error.device_seconds
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
            return None
        took = [
            self.finish(self.submit(rows[part], images[part]))
            for part in (slice(half), slice(half, None))
        ]
        return _sum_of_known(took)

    def _detect_one_by_one(self, batch: Batch) -> float | None:
        """Pictures over which a process ended, in this command: that of a single one is told."""
        if len(batch.rows) > 1:
            took = []
            for row, image in zip(batch.rows, batch.images, strict=True):
                with self.turns.exclusive():
                    took.append(self.finish(self.submit([row], [image])))
            self.notes.end(batch.key)
            return _sum_of_known(took)
        if self.notes.unfinished(batch.key) < ATTEMPTS:
            with self.turns.exclusive():
                return self.finish(self.submit(batch.rows, batch.images, again=True))
        stuck = self.notes.stood_still(batch.key)
        reason = f"took more than {self.notes.seconds:g} s" if stuck else "ended its process"
        batch.rows[0].update(
            status=TIMED_OUT if stuck else WORKER_CRASH,
            error=f"the detector {reason}, {ATTEMPTS} times",
        )
        return None

    def _fill(self, rows: list[Row], found: Detections) -> None:
        """Boxes from the threshold up (at 0: the best TOP) into their rows."""
        scores, labels, boxes = (t.numpy() for t in (found.scores, found.labels, found.boxes))
        for index, row in enumerate(rows):
            keep = np.flatnonzero(scores[index] >= self.score_threshold)
            row["boxes"] = [
                {
                    "label_id": int(labels[index, k]),
                    "score": float(scores[index, k]),
                    **dict(zip(_CORNERS, boxes[index, k].tolist(), strict=True)),
                }
                for k in keep
            ]


def _sum_of_known(seconds: list[float | None]) -> float | None:
    """None where none is known."""
    known = [one for one in seconds if one is not None]
    return sum(known) if known else None


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
