"""Which boxes of an image are kept, and of which classes they are then.

`label` applies the rules to what a detector finds; `export`, `query` and `evaluate` apply the same
afterwards. They run on the host, on one image at a time, so that the boxes of an image are the same
on every device and beside whatever neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.stages.box_overlaps import MARGIN, overlapping_pairs

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class BoxRules:
    """Rules that choose boxes; the default keeps every box.

    Classes are given by their numbers. The rules apply in the order of the fields: what an earlier
    rule drops suppresses no box, and classes that are renamed to one are one class for `nms`.
    """

    classes: tuple[int, ...] | None = None  # the classes that are kept; None: all
    # Least scores of single classes, (class, score); the others have the general threshold.
    thresholds: tuple[tuple[int, float], ...] = ()
    renamed: tuple[tuple[int, int], ...] = ()  # (class, new class)
    min_size: float = 0.0  # least length of the shorter side, in pixels of the displayed image
    # A box goes that has a greater IoU with a box of a higher score: of its own class, of any.
    nms: float | None = None
    nms_across_classes: float | None = None

    @property
    def suppress(self) -> bool:
        """Whether boxes can suppress one another."""
        return self.nms is not None or self.nms_across_classes is not None

    def for_views(self) -> tuple["BoxRules", "BoxRules"]:
        """The rules for the boxes of each view of a tiled image, and those for the joined boxes.

        Both together are these rules: the size of an object, and what suppresses it, are known only
        when its parts are joined.
        """
        first = replace(self, min_size=0.0, nms=None, nms_across_classes=None)
        return first, replace(self, classes=None, thresholds=(), renamed=())

    def select(
        self, scores: Floats, labels: npt.NDArray[Any], boxes: Floats, score_threshold: float = 0.0
    ) -> tuple[Places, Ints]:
        """The boxes of one image that are kept, and their classes.

        Args:
            scores: (N,), from high to low. Of equal scores the first box counts as the higher one.
            labels: (N,) numbers of the classes.
            boxes: (N, 4) x_min, y_min, x_max, y_max in pixels of the displayed image.
            score_threshold: the least score of classes without a threshold of their own.

        Returns:
            The positions (M,) of the boxes that are kept, ascending, and their classes (M,).
        """
        kept = np.flatnonzero(self._is_wanted(scores, labels, score_threshold))
        found = labels[kept].astype(np.int32)
        if self.renamed:
            found = _look_up(self._new_numbers, found, found)
        if self.min_size > 0:
            sides = boxes[kept, 2:] - boxes[kept, :2]
            is_large = sides.min(axis=1) >= np.float32(self.min_size)
            kept, found = kept[is_large], found[is_large]
        if self.nms is not None:
            stays = _not_suppressed(boxes[kept], found, self.nms)
            kept, found = kept[stays], found[stays]
        if self.nms_across_classes is not None:
            one_kind = np.zeros_like(found)
            stays = _not_suppressed(boxes[kept], one_kind, self.nms_across_classes)
            kept, found = kept[stays], found[stays]
        return kept, found

    def _is_wanted(
        self, scores: Floats, labels: npt.NDArray[Any], score_threshold: float
    ) -> npt.NDArray[np.bool_]:
        """Whether a box has a class that is kept, and reaches the threshold of that class."""
        least: Any = np.float32(score_threshold)
        if self.thresholds:
            own = _look_up(self._own_thresholds, labels, np.float32(-1))
            least = np.where(own >= 0, own, least)
        is_wanted: npt.NDArray[np.bool_] = scores >= least
        if self.classes is not None:
            is_wanted &= _look_up(self._is_chosen, labels, np.float32(-1)) > 0
        return is_wanted

    # Tables by the number of a class. -1 stands for a class that a table does not have.

    @cached_property
    def _is_chosen(self) -> Floats:
        return _table([(number, 1.0) for number in self.classes or ()], np.float32)

    @cached_property
    def _own_thresholds(self) -> Floats:
        return _table(self.thresholds, np.float32)

    @cached_property
    def _new_numbers(self) -> Ints:
        return _table(self.renamed, np.int32)


KEEP_ALL = BoxRules()


def _table(pairs: Sequence[tuple[int, float]], dtype: Any) -> npt.NDArray[Any]:
    """A table by number, which ends with a -1 for all greater numbers."""
    table = np.full(max((number for number, _ in pairs), default=-1) + 2, -1, dtype)
    for number, value in pairs:
        table[number] = value
    return table


def _look_up(table: npt.NDArray[Any], labels: npt.NDArray[Any], absent: Any) -> npt.NDArray[Any]:
    """The values (N,) of classes (N,); `absent` for those that the table does not have."""
    values = table[np.minimum(labels, len(table) - 1)]
    return np.where(values >= 0, values, absent)


def suppressed_boxes(
    rules: BoxRules,
    lengths: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    boxes: Floats,
) -> Places:
    """The boxes of many images that others suppress by `rules`, which have no other rule.

    `lengths` (I,) are the numbers of boxes of the images. `labels` (N,) and `boxes` (N, 4) are
    those of all images, one image after the other, each best first. Returns positions, ascending.
    """
    linked = np.zeros(len(boxes), bool)
    if rules.nms is not None:
        linked |= _linked(lengths, boxes, rules.nms, labels)
    if rules.nms_across_classes is not None:
        linked |= _linked(lengths, boxes, rules.nms_across_classes, None)
    stops = np.cumsum(lengths)
    stays = np.ones(len(boxes), bool)
    for image in np.unique(np.searchsorted(stops, np.flatnonzero(linked), "right")):
        own = slice(stops[image] - lengths[image], stops[image])
        stays[own] = False
        scores = np.zeros(lengths[image], np.float32)  # the order alone counts
        kept, _ = rules.select(scores, labels[own], boxes[own])
        stays[own.start + kept] = True
    return np.flatnonzero(~stays)


def _linked(
    lengths: npt.NDArray[Any], boxes: Floats, iou: float, kinds: npt.NDArray[Any] | None
) -> npt.NDArray[np.bool_]:
    """Whether a box (N,) may suppress another one of its image, or be suppressed by it."""
    linked = np.zeros(len(boxes), bool)
    for left, right in overlapping_pairs(lengths, boxes, iou - MARGIN, kinds):
        linked[left] = linked[right] = True
    return linked


def _not_suppressed(boxes: Floats, kinds: npt.NDArray[Any], iou: float) -> Places:
    """The boxes, best first, that no better one of their kind suppresses; ascending.

    Each kind goes to torchvision alone. Its `batched_nms` moves the classes apart instead, which
    rounds corners, so that pairs near the threshold may be decided otherwise. Boxes that are near
    to none are left out, because a call takes 50 us of a CPU: 100 boxes of 90 classes take 0.16 ms
    instead of 3 (2026-11-28).

    torchvision is imported here, because that takes a second, and few commands suppress boxes.
    """
    linked = _linked(np.array([len(boxes)]), boxes, iou, kinds)
    if not linked.any():
        return np.arange(len(boxes))
    import torch
    from torchvision.ops import nms

    stays = ~linked
    for kind in np.unique(kinds[linked]):
        part = np.flatnonzero(linked & (kinds == kind))
        ranks = torch.arange(len(part), 0, -1, dtype=torch.float32)  # in place of scores: no ties
        stays[part[nms(torch.from_numpy(boxes[part]), ranks, iou).numpy()]] = True
    return np.flatnonzero(stays)
