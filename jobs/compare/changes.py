"""What changed between two labellings, summed over any number of boxes in bounded memory."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.compare.box_pairs import Boxes, Crowded, Ints, Pairs, pair_boxes

STEPS = 10_000  # histogram steps for each unit, which is the resolution of the quantiles
QUANTILES = (0.1, 0.5, 0.9)


class Spread:
    """Mean and quantiles of values in [`least`, 1], by class.

    Quantiles are exact to a ten-thousandth.
    """

    def __init__(self, kinds: int, least: float):
        self.least = least
        bins = round((1 - least) * STEPS) + 1
        self.sums = np.zeros(kinds)
        self.counts = np.zeros((kinds, bins), np.uint32)

    def add(self, kind: Ints, value: NDArray[Any]) -> None:
        self.sums += np.bincount(kind, value, len(self.sums))
        step = np.rint((value - self.least) * STEPS).astype(np.int64)
        places, times = np.unique(kind * self.counts.shape[1] + step, return_counts=True)
        self.counts.ravel()[places] += times.astype(np.uint32)

    def of(self, kind: int | None = None) -> dict[str, float] | None:
        """Summarize one class, or all classes for None; None where there is no value."""
        counts = self.counts.sum(0, np.int64) if kind is None else self.counts[kind]
        total = int(counts.sum())
        if not total:
            return None
        mean = float(self.sums.sum() if kind is None else self.sums[kind]) / total
        places = np.searchsorted(np.cumsum(counts), [q * total for q in QUANTILES])
        values = {
            f"p{q * 100:.0f}": self.least + float(at) / STEPS
            for q, at in zip(QUANTILES, places, strict=True)
        }
        return {name: round(value, 6) + 0.0 for name, value in {"mean": mean, **values}.items()}


@dataclass(frozen=True, order=True)
class Different:
    """An image whose boxes differ."""

    difference: float  # sum of unmatched boxes' scores, class changes' scores and score drifts
    pair: int  # number of the image
    new: int
    gone: int
    class_changed: int


@dataclass(frozen=True)
class Side:
    """The boxes of one labelling.

    A box `below` scores less than the threshold of the other labelling. If such a box has no
    partner, that says nothing about the other labelling, so it counts as neither new nor gone.
    """

    boxes: Boxes
    below: NDArray[np.bool_]

    def without(self, images: Ints) -> "Side":
        """The boxes of all other images."""
        rows = ~np.isin(self.boxes.image, images)
        return Side(self.boxes.select(rows), self.below[rows])


class Changes:
    """Sums over images. `add` takes whole images, in any order."""

    def __init__(self, kinds: int, iou: float, most: int):
        self.iou, self.most = iou, most
        zeros = np.zeros(kinds, np.int64)
        self.left, self.right, self.matched, self.gone, self.new = (zeros.copy() for _ in range(5))
        self.gone_below, self.new_below = zeros.copy(), zeros.copy()
        self.class_changes: Counter[tuple[int, int]] = Counter()
        self.drift, self.overlap = Spread(kinds, -1.0), Spread(kinds, 0.0)
        self.images_changed = 0
        self.crowded: list[int] = []  # the numbers of images that are left out
        self.different: list[Different] = []  # heap of the images that differ most

    def add(self, left: Side, right: Side) -> None:
        a, b = left.boxes, right.boxes
        try:
            pairs = pair_boxes(a, b, self.iou)
        except Crowded as error:
            self.crowded += error.images.tolist()
            self.add(left.without(error.images), right.without(error.images))
            return
        alone_a, alone_b = (
            np.setdiff1d(np.arange(len(side)), taken)
            for side, taken in ((a, pairs.left), (b, pairs.right))
        )
        kinds = len(self.left)
        self.gone_below += np.bincount(a.kind[alone_a[left.below[alone_a]]], minlength=kinds)
        self.new_below += np.bincount(b.kind[alone_b[right.below[alone_b]]], minlength=kinds)
        alone_a, alone_b = alone_a[~left.below[alone_a]], alone_b[~right.below[alone_b]]
        same, other = pairs.select(pairs.same), pairs.select(~pairs.same)
        self.left += np.bincount(a.kind, minlength=kinds)
        self.right += np.bincount(b.kind, minlength=kinds)
        self.matched += np.bincount(a.kind[same.left], minlength=kinds)
        self.gone += np.bincount(a.kind[alone_a], minlength=kinds)
        self.new += np.bincount(b.kind[alone_b], minlength=kinds)
        self.class_changes.update(
            zip(a.kind[other.left].tolist(), b.kind[other.right].tolist(), strict=True)
        )
        drift = b.score[same.right] - a.score[same.left]
        self.drift.add(a.kind[same.left], drift)
        self.overlap.add(a.kind[same.left], same.overlap)
        self._rank_images(a, b, same, other, alone_a, alone_b)

    def _rank_images(
        self, a: Boxes, b: Boxes, same: Pairs, other: Pairs, alone_a: Ints, alone_b: Ints
    ) -> None:
        """Keep the images that differ most, and count the images whose boxes differ."""
        numbers = np.union1d(a.image, b.image)

        def by_image(images: Ints, weights: NDArray[Any] | None = None) -> NDArray[Any]:
            return np.bincount(np.searchsorted(numbers, images), weights, len(numbers))

        gone, new, changed = (
            by_image(side.image[rows])
            for side, rows in ((a, alone_a), (b, alone_b), (a, other.left))
        )
        self.images_changed += int(((gone + new + changed) > 0).sum())
        difference = (
            by_image(a.image[alone_a], a.score[alone_a])
            + by_image(b.image[alone_b], b.score[alone_b])
            + by_image(a.image[other.left], np.maximum(a.score[other.left], b.score[other.right]))
            + by_image(a.image[same.left], np.abs(b.score[same.right] - a.score[same.left]))
        )
        for at in np.argsort(-difference, kind="stable")[: self.most].tolist():
            if difference[at] > 0:
                found = Different(
                    float(difference[at]),
                    int(numbers[at]),
                    int(new[at]),
                    int(gone[at]),
                    int(changed[at]),
                )
                keep = heapq.heappush if len(self.different) < self.most else heapq.heappushpop
                keep(self.different, found)

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """Return a document of sums: `boxes` of all classes, `by_class`, and `class_changes`.

        Classes are sorted by their differences, most first, and by name.
        """
        ordered = sorted(self.class_changes.items(), key=lambda item: (-item[1], item[0]))
        classes = [
            {"name": names[kind], **self._count_boxes(kind)}
            for kind in range(len(names))
            if self.left[kind] or self.right[kind]
        ]
        return {
            "boxes": self._count_boxes(None),
            "by_class": sorted(classes, key=lambda one: (-one["differences"], one["name"])),
            "class_changes": [
                {"from": names[a], "to": names[b], "boxes": count} for (a, b), count in ordered
            ],
        }

    def _count_boxes(self, kind: int | None) -> dict[str, Any]:
        """Count the boxes of one class, or of all classes for None.

        `differences` are boxes on one side alone, and boxes that became another class: each is one
        difference of all classes together, and one of either class.
        """
        which: Any = slice(None) if kind is None else kind
        changed = [
            sum(count for pair, count in self.class_changes.items() if kind in (None, pair[side]))
            for side in (0, 1)
        ]
        gone, new = int(self.gone[which].sum()), int(self.new[which].sum())
        return {
            "a": int(self.left[which].sum()),
            "b": int(self.right[which].sum()),
            "matched": int(self.matched[which].sum()),
            "gone": gone,
            "new": new,
            "differences": gone + new + (changed[0] if kind is None else sum(changed)),
            "gone_below_threshold": int(self.gone_below[which].sum()),
            "new_below_threshold": int(self.new_below[which].sum()),
            **(
                {"class_changed": changed[0]}
                if kind is None
                else {"to_other_class": changed[0], "from_other_class": changed[1]}
            ),
            "score_drift": self.drift.of(kind),  # score in b minus score in a
            "iou": self.overlap.of(kind),
        }
