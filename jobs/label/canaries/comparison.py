"""How far two answers of a model for one canary are apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.output.canaries import Object
from pipeline.stages.canaries import Answer, Numbers

# Boxes that count where devices differ: those that a person would act on.
CONFIDENT = 0.5
# With shapes-tiny in fp32 and in bf16 on a CPU, 550 of 561 confident boxes of 60 scenes are within
# these (2026-11-28). No two models of GPUs were compared.
LEAST_IOU, MOST_SCORE, LEAST_SHARE = 0.85, 0.1, 0.9
SHOWN_IOU = 5e-5  # an IoU this near to 1 has only digits that are not written out
FOUND_IOU = 0.5  # least overlap of a detection with the object that it finds


def overlaps(a: Numbers, b: Numbers) -> Numbers:
    """IoU of each box of `a` (N, 4) with each of `b` (M, 4), as corners: (N, M)."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    inside = np.prod(np.clip(high - low, 0, None), 2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], 1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1] - inside
    result: Numbers = inside / np.maximum(union, 1e-9)
    return result


@dataclass(frozen=True)
class Difference:
    """How far the confident boxes of two answers are from each other's."""

    boxes: int  # confident boxes of both
    near: int  # of these, those that the other has within the tolerance
    iou: float  # the least
    score: float  # the greatest

    @property
    def near_share(self) -> float:
        return self.near / self.boxes if self.boxes else 1.0

    def as_text(self) -> str:
        """What differs: boxes that are elsewhere, else scores and corners."""
        scores = [f"scores by up to {self.score:.2g}"] if self.score else []
        if self.near < self.boxes:
            elsewhere = f"{self.boxes - self.near} of {self.boxes} confident boxes are elsewhere"
            return ", ".join([f"{elsewhere}: least IoU {self.iou:.4f}", *scores])
        if self.iou <= 1 - SHOWN_IOU:
            corners = [f"corners down to an IoU of {self.iou:.4f}"]
        else:
            corners = ["corners in last digits"] if self.iou < 1 else []
        if not scores and not corners:
            return "only in last digits, or in boxes that are not confident"
        return f"the confident boxes are in place, and differ: {', '.join([*scores, *corners])}"


def difference(a: Answer, b: Answer) -> Difference:
    """Compare the boxes of either answer that are confident with the boxes of the other.

    The partner of a box is the box of its class, of whatever score, with the greatest overlap: so a
    score on either side of a threshold is no difference by itself.
    """
    ious: list[float] = []
    scores: list[float] = []
    for one, other in ((a, b), (b, a)):
        for row in np.flatnonzero(one.numbers[:, 0] >= CONFIDENT).tolist():
            same = other.numbers[other.labels == one.labels[row]]
            found = overlaps(one.numbers[row : row + 1, 1:], same[:, 1:])[0]
            # Several queries may find one object: of overlaps as good, that of the nearest score.
            partners = same[found >= max(LEAST_IOU, found.max(initial=0) - (1 - LEAST_IOU)), 0]
            ious.append(float(found.max(initial=0)))
            scores.append(float(np.abs(partners - one.numbers[row, 0]).min(initial=1)))
    near = sum(
        iou >= LEAST_IOU and score <= MOST_SCORE for iou, score in zip(ious, scores, strict=True)
    )
    return Difference(len(ious), near, min(ious, default=1.0), max(scores, default=0.0))


def are_close(differences: Sequence[Difference]) -> bool:
    """Whether answers for all canaries are as close as those of two kinds of devices are."""
    boxes, near = (sum(getattr(one, name) for one in differences) for name in ("boxes", "near"))
    return near >= LEAST_SHARE * boxes


def count_found(
    answers: Sequence[Answer], objects: Sequence[Sequence[Object]], labels: Sequence[str]
) -> tuple[int, int]:
    """How many objects of the model's classes a confident box of their class finds, and all."""
    found = whole = 0
    for answer, wanted in zip(answers, objects, strict=True):
        known = [one for one in wanted if one.label in labels]
        whole += len(known)
        sure = answer.numbers[:, 0] >= CONFIDENT
        if known and sure.any():
            boxes = np.array([one.box for one in known], np.float32)
            wanted_names = np.array([one.label for one in known])
            names = np.array([labels[label] for label in answer.labels[sure]])
            is_over = overlaps(boxes, answer.numbers[sure, 1:]) >= FOUND_IOU
            found += int((is_over & (wanted_names[:, None] == names)).any(1).sum())
    return found, whole
