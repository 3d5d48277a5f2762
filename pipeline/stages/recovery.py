"""Detection in batches of images, with recovery from failures.

A batch that raises an error is halved until the failing image is alone. A batch during which a
process of this command ended (journal.py) is processed image by image. Each failing image becomes a
failed row; all other images get their boxes.
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

# Attempts at a single image during which the process ended. The image may not be the cause.
ATTEMPTS = 2

NOT_FINITE = (
    "the model's output is not finite: its weights are damaged, or its precision is too narrow for "
    "them (try --precision fp32)"
)

Row = dict[str, Any]


@dataclass
class Batch:
    """Images that were submitted together, and their result so far.

    `pending` is an exception if the submission failed. It is None if the batch ended a process
    before and was therefore not submitted.
    """

    key: str  # name of its entry in the crash journal
    rows: list[Row]
    images: list[Tensor]  # (rows, columns, 3) uint8 each
    pending: Pending | Exception | None


class RecoveringDetector:
    """Detects objects in batches. It writes boxes into rows, and the status of rows that fail."""

    def __init__(
        self, predictor: Predictor, journal: CrashJournal, score_threshold: float, most: int
    ):
        self.predictor, self.journal = predictor, journal
        self.score_threshold = score_threshold
        # Published models have outputs that stand for no class: number 0 and the holes of COCO's.
        self.has_name = np.array([bool(name) for name in predictor.net.config.labels])
        self.calls = ExclusiveCalls()  # coordinates concurrent calls of the detector
        self.most = most  # images per batch; `finish` lowers it if memory does not hold as many

    def submit(self, rows: list[Row], images: list[Tensor], again: bool = False) -> Batch:
        """Start a batch. It is not started if a process ended during it before.

        `again` starts it in that case as well. `images` are (rows, columns, 3) uint8. Errors of
        torch are stored in the batch.
        """
        key = _key(rows)
        if not again and self.journal.unfinished(key):
            return Batch(key, rows, images, None)
        self.journal.begin(key)
        sizes = torch.tensor([(row["height"], row["width"]) for row in rows])
        try:
            return Batch(key, rows, images, self.predictor.submit(images, sizes))
        except (RuntimeError, MemoryError) as error:  # torch raises these for memory and kernels
            _end_where_lasting(error)
            # The traceback is dropped, because it keeps the tensors of the attempt alive.
            return Batch(key, rows, images, error.with_traceback(None))

    def finish(self, batch: Batch) -> float | None:
        """Write the boxes into the rows. A failed batch is halved until the failing image is alone.

        If the batch was too large for the memory, later batches are at most half as large. Returns
        the device's computing time for the rows that have boxes now, in seconds. It is None if the
        device does not report the time.
        """
        if batch.pending is None:
            return self._detect_one_by_one(batch)
        rows, images, error = batch.rows, batch.images, batch.pending
        if isinstance(error, Pending):
            try:
                self._fill(rows, error.result())
                self.journal.end(batch.key)
                return error.device_seconds
            except RuntimeError as late:
                _end_where_lasting(late)
                error = late.with_traceback(None)
        self.journal.end(batch.key)
        half = len(rows) // 2
        if _is_of_memory(error):
            self.predictor.give_memory_back()
            self.most = min(self.most, max(half, 1))
        if not half:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            rows[0].update(status=DETECTOR_ERROR, error=reason)
            return None
        seconds = [
            self.finish(self.submit(rows[part], images[part]))
            for part in (slice(half), slice(half, None))
        ]
        return _sum_of_known(seconds)

    def _detect_one_by_one(self, batch: Batch) -> float | None:
        """Process the images of a batch during which a process of this command ended, one by one.

        A single image gets ATTEMPTS attempts and is then marked as failed. Returns seconds as
        `finish` does.
        """
        if len(batch.rows) > 1:
            seconds = []
            for row, image in zip(batch.rows, batch.images, strict=True):
                with self.calls.exclusive():
                    seconds.append(self.finish(self.submit([row], [image])))
            self.journal.end(batch.key)
            return _sum_of_known(seconds)
        if self.journal.unfinished(batch.key) < ATTEMPTS:
            with self.calls.exclusive():
                return self.finish(self.submit(batch.rows, batch.images, again=True))
        stuck = self.journal.stood_still(batch.key)
        reason = f"took more than {self.journal.seconds:g} s" if stuck else "ended its process"
        batch.rows[0].update(
            status=TIMED_OUT if stuck else WORKER_CRASH,
            error=f"the detector {reason}, {ATTEMPTS} times",
        )
        return None

    def _fill(self, rows: list[Row], found: Detections) -> None:
        """Write the boxes whose score reaches the threshold into the rows (at 0: the best TOP).

        Boxes of classes without a name are left out; no other box takes their place. An image for
        which the model computed numbers that are not finite fails.
        """
        scores, labels, boxes = (t.numpy() for t in (found.scores, found.labels, found.boxes))
        finite = np.isfinite(scores).all(1) & np.isfinite(boxes).all((1, 2))
        for index, row in enumerate(rows):
            if not finite[index]:
                row.update(status=DETECTOR_ERROR, error=NOT_FINITE)
                continue
            is_kept = (scores[index] >= self.score_threshold) & self.has_name[labels[index]]
            row["boxes"] = [
                {
                    "label_id": int(labels[index, k]),
                    "score": float(scores[index, k]),
                    **dict(zip(_CORNERS, boxes[index, k].tolist(), strict=True)),
                }
                for k in np.flatnonzero(is_kept)
            ]


def _sum_of_known(seconds: list[float | None]) -> float | None:
    """The sum of the values that are known; None if no value is known."""
    known = [one for one in seconds if one is not None]
    return sum(known) if known else None


def _key(rows: list[Row]) -> str:
    """A name for a batch, made from the shard and position of each of its images."""
    positions = "\0".join(f"{row['shard']}\0{row['index_in_shard']}" for row in rows)
    return hashlib.sha256(positions.encode()).hexdigest()[:24]


def _end_where_lasting(error: Exception) -> None:
    """End this process if every later call to its device would fail.

    After an illegal access CUDA answers every call with that error. Ray restarts the detector.
    """
    if isinstance(error, torch.AcceleratorError) and not _is_of_memory(error):
        print(f"the device failed, and the detector ends: {error}", file=sys.stderr)
        os._exit(1)


def _is_of_memory(error: Exception) -> bool:
    """Whether host or device memory was too small. torch has no error type for host memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "allocate memory" in str(error) or "out of memory" in str(error)


_CORNERS = ("x_min", "y_min", "x_max", "y_max")
