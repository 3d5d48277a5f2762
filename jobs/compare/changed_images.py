"""What became of each box of some images, for people to see."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.compare.box_pairs import Boxes, pair_boxes
from jobs.compare.changes import Side

MATCHED, CLASS_CHANGED, GONE, NEW = "matched", "class_changed", "gone", "new"


def told_apart(
    left: Side, right: Side, iou: float, names: Sequence[str]
) -> dict[int, list[dict[str, Any]]]:
    """The boxes of each image, by its number: what became of them (`change`), those changed first.

    A box that is in both, with one class, is told once, as b has it, with its score in a as
    `score_a`. Boxes that are alone below the other's threshold are left out.
    """
    pairs = pair_boxes(left.boxes, right.boxes, iou)
    same, other = pairs.chosen(pairs.same), pairs.chosen(~pairs.same)
    found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for i, j in zip(same.left.tolist(), same.right.tolist(), strict=True):
        box = _box(right.boxes, j, names)
        box |= {"side": "b", "change": MATCHED, "score_a": float(left.boxes.score[i])}
        found[int(right.boxes.image[j])].append(box)
    for name, side, matched, changed, alone in (
        ("a", left, same.left, other.left, GONE),
        ("b", right, same.right, other.right, NEW),
    ):
        for i in np.setdiff1d(np.arange(len(side.boxes)), matched).tolist():
            change = CLASS_CHANGED if i in changed else alone
            if change == CLASS_CHANGED or not side.below[i]:
                box = {**_box(side.boxes, i, names), "side": name, "change": change}
                found[int(side.boxes.image[i])].append(box)
    for boxes in found.values():
        boxes.sort(key=lambda box: (box["change"] == MATCHED, -box["score"]))
    return found


def _box(boxes: Boxes, i: int, names: Sequence[str]) -> dict[str, Any]:
    return {
        "label": names[boxes.kind[i]],
        "score": float(boxes.score[i]),
        "corners": boxes.box[i].tolist(),
    }
