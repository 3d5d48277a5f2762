"""What became of each box in some images, for people to see."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.compare.box_pairs import Boxes, pair_boxes
from jobs.compare.changes import Side

MATCHED, CLASS_CHANGED, GONE, NEW = "matched", "class_changed", "gone", "new"


def classify_boxes(
    left: Side, right: Side, iou: float, names: Sequence[str]
) -> dict[int, list[dict[str, Any]]]:
    """Return the boxes of each image, by image number, changed boxes first.

    `change` says what became of a box. A box of one class that is in both is returned once, as b
    has it, with its score in a as `score_a`. A box without a partner is left out if its score is
    below the other side's threshold.
    """
    pairs = pair_boxes(left.boxes, right.boxes, iou)
    same, other = pairs.select(pairs.same), pairs.select(~pairs.same)
    boxes_by_image: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for i, j in zip(same.left.tolist(), same.right.tolist(), strict=True):
        box = _box(right.boxes, j, names)
        box |= {"side": "b", "change": MATCHED, "score_a": float(left.boxes.score[i])}
        boxes_by_image[int(right.boxes.image[j])].append(box)
    for name, side, matched, changed, alone in (
        ("a", left, same.left, other.left, GONE),
        ("b", right, same.right, other.right, NEW),
    ):
        for i in np.setdiff1d(np.arange(len(side.boxes)), matched).tolist():
            change = CLASS_CHANGED if i in changed else alone
            if change == CLASS_CHANGED or not side.below[i]:
                box = {**_box(side.boxes, i, names), "side": name, "change": change}
                boxes_by_image[int(side.boxes.image[i])].append(box)
    for boxes in boxes_by_image.values():
        boxes.sort(key=lambda box: (box["change"] == MATCHED, -box["score"]))
    return boxes_by_image


def _box(boxes: Boxes, i: int, names: Sequence[str]) -> dict[str, Any]:
    return {
        "label": names[boxes.kind[i]],
        "score": float(boxes.score[i]),
        "corners": boxes.box[i].tolist(),
    }
