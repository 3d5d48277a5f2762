"""Canaries: images whose boxes are known, which every detector computes among those of the run.

A detector computes them before its first images, and again, among the images of a call, when so
much time has passed that they take MOST_SHARE of it. What it gave last, or its digest, travels with
the rows of every call to the driver, and lies in the staged block, so that the driver, and a rerun,
can compare it with the reference (jobs/label/canaries/proof.py). All boxes are kept, whatever the
score threshold of the run.
"""

import base64
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.detector import Size
from pipeline.stages.recovery import Image, Outcome

MOST_SHARE = 0.02  # of a detector's time
# The first check may compile kernels, so that its time says little of the next ones.
SECONDS_BEHIND_FIRST = 60.0

Labels = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Canary:
    """A prepared image."""

    pixels: npt.NDArray[np.uint8]  # (rows, columns, 3) as in PREPARED
    displayed: Size  # the size in whose pixels boxes are


@dataclass(frozen=True)
class Answer:
    """What a detector gave for one canary: its boxes, best first, or why it failed."""

    labels: Labels  # (N,)
    numbers: Numbers  # (N, 5) score, x_min, y_min, x_max, y_max in displayed pixels
    error: str | None = None

    def equals(self, other: "Answer") -> bool:
        """Whether both have equal bits."""
        return self.to_json() == other.to_json()

    def to_json(self) -> dict[str, Any]:
        if self.error is not None:
            return {"error": self.error}
        little = self.labels.astype("<i4"), np.ascontiguousarray(self.numbers, "<f4")
        names = ("labels", "numbers")
        return {
            name: base64.b64encode(part.tobytes()).decode()
            for name, part in zip(names, little, strict=True)
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Answer":
        """Raises ValueError, LookupError or TypeError for a document of another form."""
        if "error" in document:
            return cls(np.empty(0, np.int32), np.empty((0, 5), np.float32), str(document["error"]))
        labels, numbers = (base64.b64decode(document[name]) for name in ("labels", "numbers"))
        found = np.frombuffer(labels, "<i4").astype(np.int32)
        return cls(found, np.frombuffer(numbers, "<f4").astype(np.float32).reshape(len(found), 5))


def digest_of_answers(answers: Sequence[Answer]) -> str:
    """Equal for equal bits."""
    text = json.dumps([answer.to_json() for answer in answers])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class CanaryCheck:
    """The text of the column `canaries`: which detector computed a block, and what it gave."""

    detector: str  # its node, device and process
    computation: str  # model/computation.py
    digest: str  # of its newest answers when it returned the block
    answers: tuple[Answer, ...] = ()  # one for each canary; none if they were sent before

    def to_text(self) -> str:
        """One text for equal answers of one detector."""
        document: dict[str, Any] = {
            "detector": self.detector,
            "computation": self.computation,
            "digest": self.digest,
            "answers": [answer.to_json() for answer in self.answers],
        }
        return json.dumps(document)

    @classmethod
    def from_text(cls, text: str) -> "CanaryCheck":
        """Raises as `Answer.from_json`."""
        document = json.loads(text)
        answers = tuple(map(Answer.from_json, document["answers"]))
        names = ("detector", "computation", "digest")
        detector, computation, digest = (str(document[name]) for name in names)
        return cls(detector, computation, digest, answers)


class CanaryRunner:
    """Decides when a detector computes its canaries, and keeps what it gave. Threads share it."""

    def __init__(
        self,
        canaries: Sequence[Canary],
        detector: str,
        computation: str,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`detector` names this detector; no other detector of the run has the same name."""
        self.detector, self.computation, self.clock = detector, computation, clock
        # The crash journal of a node knows images by their keys, and all its detectors compute
        # these images at the same time.
        self._images = [
            Image(
                f"canary-{detector.rpartition(' ')[2]}-{number}",
                torch.from_numpy(canary.pixels.copy()),
                canary.displayed,
                least_score=0.0,
            )
            for number, canary in enumerate(canaries)
        ]
        self._lock, self._first = threading.Lock(), threading.Lock()
        self._due: float | None = -math.inf  # None while a call computes them
        self._seconds: list[float] = []  # what the checks took
        self._answers: tuple[Answer, ...] = ()
        self._digest = self._sent = ""  # the digests of the newest answers, and of those sent

    def compute_first(self, detect: Callable[[Sequence[Image]], Sequence[Outcome]]) -> None:
        """Compute the canaries if nothing was computed yet; other calls wait for them here.

        So there is no block of a detector that was never checked. Raises what `detect` raises.
        """
        with self._first:
            if self._images and not self._answers:
                self.record(detect(self.take_due_images()))

    def take_due_images(self) -> list[Image]:
        """The canaries, if this call is to compute them, else none.

        `record` takes what they gave. If the call fails, no later one of this detector succeeds.
        """
        with self._lock:
            if not self._images or self._due is None or self.clock() < self._due:
                return []
            self._due = None
            return self._images

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """Keep the outcomes of canaries, if there are any."""
        if not outcomes:
            return
        with self._lock:
            self._answers = tuple(map(_answer, outcomes))
            self._digest = digest_of_answers(self._answers)
            self._seconds.append(sum(outcome.seconds for outcome in outcomes))
            pause = min(self._seconds) / MOST_SHARE
            is_first = len(self._seconds) == 1
            self._due = self.clock() + (min(pause, SECONDS_BEHIND_FIRST) if is_first else pause)

    def text(self) -> str | None:
        """The text of the column `canaries` for a call that ends now; None without canaries."""
        if not self._images:
            return None
        with self._lock:
            answers = () if self._sent == self._digest else self._answers
            self._sent = self._digest
            return CanaryCheck(self.detector, self.computation, self._digest, answers).to_text()


def _answer(outcome: Outcome) -> Answer:
    numbers = np.column_stack([outcome.scores, outcome.boxes]).astype(np.float32)
    error = None if outcome.failure is None else ": ".join(outcome.failure)
    return Answer(outcome.labels.astype(np.int32), numbers, error)
