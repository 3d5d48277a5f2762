"""Answers of detectors for canaries, made by hand."""

from collections.abc import Sequence

import numpy as np

from jobs.label.canaries.choice import Canaries
from jobs.output.canaries import CanaryImage, CanaryReference, Object
from pipeline.stages.canaries import Answer, CanaryCheck, digest_of_answers

LABELS = ("", "circle", "star")
AVX512, AVX2 = "fp32 on cpu (AVX512, 1 thread)", "fp32 on cpu (AVX2, 1 thread)"
OBJECTS = (Object("circle", (10, 10, 50, 50)), Object("star", (100, 20, 160, 90)))
IMAGES = (CanaryImage("one.jpg", b"1", OBJECTS), CanaryImage("two.jpg", b"2", OBJECTS[:1]))
Boxes = Sequence[tuple[int, float, float, float, float, float]]  # label, score, corners
# What a model gives that finds all objects, and one box more of a low score.
FOUND: tuple[Boxes, Boxes] = (
    ((1, 0.9, 10, 10, 50, 50), (2, 0.8, 101, 20, 160, 90), (2, 0.1, 0, 0, 9, 9)),
    ((1, 0.9, 10, 11, 50, 50),),
)


def answer(boxes: Boxes) -> Answer:
    rows = np.array(boxes, np.float32).reshape(-1, 6)
    return Answer(rows[:, 0].astype(np.int32), np.ascontiguousarray(rows[:, 1:]))


def check(
    found: Sequence[Boxes] = FOUND, computation: str = AVX512, detector: str = "host, process 1 ab"
) -> CanaryCheck:
    """What a detector reports with its first block."""
    return check_of(list(map(answer, found)), computation, detector)


def check_of(answers: Sequence[Answer], computation: str, detector: str) -> CanaryCheck:
    return CanaryCheck(detector, computation, digest_of_answers(answers), tuple(answers))


def moved(found: Sequence[Boxes], pixels: float, score: float = 0.0) -> list[Boxes]:
    """The boxes, all moved to the right and with scores that are lower."""
    return [
        [
            (label, own - score, left + pixels, top, right + pixels, bottom)
            for label, own, left, top, right, bottom in boxes
        ]
        for boxes in found
    ]


KNOWN = check()


def canaries(known: CanaryCheck | None = KNOWN) -> Canaries:
    """The canaries of an OUTPUT of which a run gave `known`; None in the first run with them."""
    answers, runs = {}, {}
    if known is not None:
        answers = {known.computation: [one.to_json() for one in known.answers]}
        runs = {known.computation: "20260101T000000Z-aaaaaa"}
    reference = CanaryReference("canaries.json", IMAGES, answers, runs)
    return Canaries(reference, is_recorded=known is not None)
