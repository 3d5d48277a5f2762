"""Detection in batches of one form, with recovery from failures.

A batch that raises an error is halved until the failing image is alone; blanks keep the form, so
that the other images get the bits that they always get. So is one with a JPEG that the device does
not decode: that image is to come back with its pixels. An image during which processes of this
command ended (journal.py) is computed alone. Each failing image becomes a failed row; all other
images get their boxes. Too little memory is a failure of no image: it ends the run.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.detector import BatchDetector, Detections, Pending, Size
from model.image_detector import NotFinite
from model.jpeg import Jpeg, Refused
from model.preprocess import form_batch
from pipeline.isolation.journal import CrashJournal
from pipeline.schema import DETECTOR_ERROR, TIMED_OUT, WORKER_CRASH
from pipeline.stages.box_rules import KEEP_ALL, BoxRules
from pipeline.storage.errors import CommandFailed

# Attempts at an image during which the process ended. The image may not be the cause of the first,
# when it had neighbours.
ATTEMPTS = 3
JPEG_ATTEMPTS = 2  # of which the device decodes so many; at the last one the image has pixels
# The status of a JPEG that is to be decoded elsewhere. It reaches no table.
REFUSED = "refused"

NOT_FINITE = str(NotFinite())


class OutOfMemory(CommandFailed):
    """The device, or the machine, has too little memory for a batch."""


@dataclass(frozen=True)
class Image:
    """A prepared image."""

    key: str  # its name in the crash journal
    pixels: Tensor | Jpeg  # (rows, columns, 3) uint8, or what the detector's device decodes
    displayed: Size  # the size in whose pixels boxes are
    # Of the boxes that it keeps, whatever the rules; None: the detector's threshold and rules.
    least_score: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The boxes of an image, best first, or why it failed."""

    scores: npt.NDArray[np.float32]  # (N,)
    labels: npt.NDArray[np.int32]  # (N,)
    boxes: npt.NDArray[np.float32]  # (N, 4) x_min, y_min, x_max, y_max in displayed pixels
    seconds: float = 0.0  # this image's share of the time of its batch
    failure: tuple[str, str] | None = None  # status and error

    @property
    def is_refused(self) -> bool:
        """Whether the image is a JPEG that is to be decoded elsewhere."""
        return self.failure is not None and self.failure[0] == REFUSED


@dataclass(frozen=True)
class UnderWay:
    """Images that were submitted together. `pending` is an exception if that failed."""

    images: Sequence[Image]
    pending: Pending | Exception
    began: float  # time.perf_counter()


class RecoveringDetector:
    """Detects objects in batches. One thread may use it."""

    def __init__(
        self,
        detector: BatchDetector,
        journal: CrashJournal,
        score_threshold: float,
        rules: BoxRules = KEEP_ALL,
    ):
        self.detector, self.journal = detector, journal
        self.score_threshold, self.rules = score_threshold, rules
        # Published models have outputs that stand for no class: number 0 and the holes of COCO's.
        self.has_name = np.array([bool(name) for name in detector.labels])

    def target(self, image: Image) -> Size:
        """The size in which the model sees an image: larger where its preparer left that to us."""
        resize = self.detector.resize
        if isinstance(image.pixels, Jpeg):
            return resize.target_size(*image.displayed)
        own = (image.pixels.shape[0], image.pixels.shape[1])
        is_left = own == resize.prepared_size(*image.displayed, enlarge=False)
        return resize.target_size(*image.displayed) if is_left else own

    def canvas(self, image: Image) -> Size:
        """The canvas of an image."""
        return self.detector.canvas(self.target(image))

    def ended_a_process(self, image: Image) -> bool:
        """Whether a process of this command ended while it computed the image."""
        return bool(self.journal.unfinished(image.key))

    def refuse(self, image: Image) -> Outcome | None:
        """The outcome of an image that must not be tried again; None if it may be tried."""
        ended = self.journal.unfinished(image.key)
        if ended >= JPEG_ATTEMPTS and isinstance(image.pixels, Jpeg):
            return _failed(REFUSED, f"its process ended, {ended} times")
        if ended < ATTEMPTS:
            return None
        stuck = self.journal.stood_still(image.key)
        reason = f"took more than {self.journal.seconds:g} s" if stuck else "ended its process"
        status = TIMED_OUT if stuck else WORKER_CRASH
        return _failed(status, f"the detector {reason}, {ended} times")

    def warm_up(self) -> bool:
        """Prepare for one more form; whether another is left. Too little memory ends that."""
        try:
            return self.detector.warm_up()
        except (RuntimeError, MemoryError) as error:
            _end_where_lasting(error)
            if not _is_of_memory(error):
                raise
            self.detector.give_memory_back()
            return False

    def submit(self, images: Sequence[Image]) -> UnderWay:
        """Start a batch of images of one canvas. Errors of torch are stored in what is returned."""
        began = time.perf_counter()
        for image in images:
            self.journal.begin(image.key)
        sizes = torch.ones(self.detector.count, 2, dtype=torch.int64)
        sizes[: len(images)] = torch.tensor([image.displayed for image in images])
        try:
            own, targets = [image.pixels for image in images], list(map(self.target, images))
            pixels, valid, sources = form_batch(own, self.detector, targets)
            pending = self.detector.submit(pixels, valid, sizes, sources)
            return UnderWay(images, pending, began)
        except (RuntimeError, MemoryError) as error:  # torch raises these for memory and kernels
            _end_where_lasting(error)
            # The traceback is dropped, because it keeps the tensors of the attempt alive.
            return UnderWay(images, error.with_traceback(None), began)
        except BaseException:  # of the program: the images are under way no more
            self._end(images)
            raise

    def finish(self, batch: UnderWay, may_lack_memory: bool = True) -> list[Outcome]:
        """Wait for a batch: one outcome for each of its images.

        Raises OutOfMemory if memory does not hold the batch, even without what only saves time.
        """
        images, pending = batch.images, batch.pending
        if not isinstance(pending, Exception):
            try:
                found = pending.result()
                self._end(images)
                seconds = pending.device_seconds
                if seconds is None:
                    seconds = time.perf_counter() - batch.began
                return self._read(images, found, seconds / len(images))
            except (RuntimeError, MemoryError) as late:
                _end_where_lasting(late)
                pending = late.with_traceback(None)
        self._end(images)
        if _is_of_memory(pending):
            self.detector.give_memory_back()
            if may_lack_memory:
                return self.finish(self.submit(images), may_lack_memory=False)
            raise self._explain_memory(images[0]) from pending
        half = len(images) // 2
        if not half:
            reason = f"{type(pending).__name__}: {(str(pending).splitlines() or [''])[0]}"
            return [_failed(REFUSED if isinstance(pending, Refused) else DETECTOR_ERROR, reason)]
        parts = images[:half], images[half:]
        return [outcome for part in parts for outcome in self.finish(self.submit(part))]

    def _end(self, images: Sequence[Image]) -> None:
        for image in images:
            self.journal.end(image.key)

    def _explain_memory(self, image: Image) -> OutOfMemory:
        height, width = self.canvas(image)
        count = self.detector.count
        if count > 1:
            return OutOfMemory(
                f"memory does not hold {count} images of {height} x {width} at once: run the same "
                f"command with --batch-size {count // 2}; what is labelled is kept"
            )
        return OutOfMemory(
            f"memory does not hold one image of {height} x {width}: run the same command on a "
            "machine with more memory; what is labelled is kept"
        )

    def _read(self, images: Sequence[Image], found: Detections, seconds: float) -> list[Outcome]:
        """The boxes that the rules keep of those that reach the threshold (at 0: the best `top`).

        Boxes of classes without a name are left out; no other box takes their place. An image for
        which the model computed numbers that are not finite fails.
        """
        scores, labels, boxes = (t.numpy() for t in (found.scores, found.labels, found.boxes))
        is_finite = np.isfinite(scores).all(1) & np.isfinite(boxes).all((1, 2))
        return [
            self._select(images[index], scores[index], labels[index], boxes[index], seconds)
            if is_finite[index]
            else _failed(DETECTOR_ERROR, NOT_FINITE, seconds)
            for index in range(len(images))
        ]

    def _select(
        self,
        image: Image,
        scores: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
        boxes: npt.NDArray[np.float32],
        seconds: float,
    ) -> Outcome:
        """The boxes of one image that have a name and are kept."""
        named = self.has_name[labels]
        scores, labels, boxes = scores[named], labels[named], boxes[named]
        rules, least = self.rules, self.score_threshold
        if image.least_score is not None:
            rules, least = KEEP_ALL, image.least_score
        kept, classes = rules.select(scores, labels, boxes, least)
        return Outcome(scores[kept], classes, boxes[kept], seconds)


def _failed(status: str, error: str, seconds: float = 0.0) -> Outcome:
    return Outcome(
        np.empty(0, np.float32),
        np.empty(0, np.int32),
        np.empty((0, 4), np.float32),
        seconds,
        (status, error),
    )


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
