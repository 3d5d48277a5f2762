"""The boxes of the views of one image become those of the image.

Two views see a part of the image in common. Boxes of one class are of one object if they agree on
what both views see of it: there their intersection over union reaches AGREE. So a part of an object
that a border cuts agrees with the whole object, and with the part on the other side. Of one object
one box stays, the first of this order:

1. A box of a tile that ends at no border of its tile within the image: it is not cut.
2. The box of the whole image, which has less detail.
3. The box around all that are cut.

Of equal ones the better score decides. Boxes of one view are not compared, so they stay as the
model gave them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.stages.recovery import Outcome
from pipeline.stages.tiling import View

# AP of `shapes-tiny` on scenes of 2600 x 2600 in tiles of 700 with an overlap of 0.2: 0.729, where
# NMS of all boxes has 0.708, and the whole images alone have 0.295 (2026-11-28). AGREE of 0.4 and
# 0.6, and BORDER of 0.002 to 0.01, change it by 0.004 at most.
AGREE = 0.5  # least intersection over union, within what both views see
BORDER = 0.005  # of a tile's side: a box that ends so close to the border of its tile is cut

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


def join_views(views: Sequence[View], outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of an image from those of its views, of which the first is the whole.

    Boxes are moved to the pixels of the image. All that reach the threshold in a view may stay. If
    a view failed, so did the image.
    """
    seconds = sum(outcome.seconds for outcome in outcomes)
    for view, outcome in zip(views, outcomes, strict=True):
        if outcome.failure is not None:
            status, error = outcome.failure
            where = "" if view == views[0] else f"in the tile at x {view.left}, y {view.top}: "
            return replace(outcome, seconds=seconds, failure=(status, where + error))
    seen = np.array([(v.left, v.top, v.left + v.width, v.top + v.height) for v in views], "f4")
    of_view = np.repeat(np.arange(len(views)), [len(outcome.scores) for outcome in outcomes])
    scores, labels, boxes = _flat(outcomes)
    boxes = boxes + np.tile(seen[of_view, :2], 2)
    cut = _is_cut(boxes, seen[of_view], seen[0])
    order = np.lexsort((*boxes.T, labels, -scores, of_view == 0, cut))
    scores, labels, boxes, cut = scores[order], labels[order], boxes[order], cut[order]
    kept, boxes = _best_of_each(boxes, cut, _alike(boxes, labels, of_view[order], seen))
    scores, labels = scores[kept], labels[kept]
    best = np.lexsort((*boxes.T, labels, -scores))
    return Outcome(scores[best], labels[best], boxes[best], seconds)


def _flat(outcomes: Sequence[Outcome]) -> tuple[Floats, npt.NDArray[np.int32], Floats]:
    """Scores, labels and boxes of all views."""
    return (
        np.concatenate([outcome.scores for outcome in outcomes]),
        np.concatenate([outcome.labels for outcome in outcomes]),
        np.concatenate([outcome.boxes for outcome in outcomes]),
    )


def _is_cut(boxes: Floats, seen: Floats, image: Floats) -> Flags:
    """Which boxes (N, 4) end at a border of what their view has `seen` (N, 4), within the image."""
    margin = np.tile((seen[:, 2:] - seen[:, :2]) * np.float32(BORDER), 2)
    flags: Flags = ((np.abs(boxes - seen) <= margin) & (seen != image)).any(1)
    return flags


def _alike(
    boxes: Floats, labels: npt.NDArray[np.int32], of_view: npt.NDArray[np.intp], seen: Floats
) -> list[list[int]]:
    """For each box (N, 4), the numbers of those of other views that are of the same object.

    `seen` (V, 4) is what each view sees of the image.
    """
    alike: list[list[int]] = [[] for _ in boxes]
    of_each = {view: np.flatnonzero(of_view == view) for view in np.unique(of_view)}
    numbers = np.array(list(of_each), np.intp)
    for place, view in enumerate(numbers):
        others = numbers[place + 1 :]
        common = _intersection(seen[view], seen[others])
        meets = (common[:, :2] < common[:, 2:]).all(1)
        for other, part in zip(others[meets], common[meets], strict=True):
            mine, theirs = of_each[view], of_each[other]
            agree = _agree(_intersection(boxes[mine], part), _intersection(boxes[theirs], part))
            agree &= labels[mine][:, None] == labels[theirs]
            for row, column in np.argwhere(agree).tolist():
                alike[mine[row]].append(int(theirs[column]))
                alike[theirs[column]].append(int(mine[row]))
    return alike


def _agree(first: Floats, second: Floats) -> Flags:
    """Whether the intersection over union of boxes (N, 4) and (M, 4) reaches AGREE: (N, M)."""
    shared = _area(_intersection(first[:, None], second))
    union = _area(first)[:, None] + _area(second) - shared
    flags: Flags = (shared > 0) & (shared >= np.float32(AGREE) * union)
    return flags


def _intersection(first: Floats, second: Floats) -> Floats:
    """The intersection of boxes (..., 4); that of boxes apart has corners in the wrong order."""
    low = np.maximum(first[..., :2], second[..., :2])
    return np.concatenate((low, np.minimum(first[..., 2:], second[..., 2:])), axis=-1)


def _area(boxes: Floats) -> Floats:
    area: Floats = np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(-1)
    return area


def _best_of_each(
    boxes: Floats, cut: Flags, alike: Sequence[Sequence[int]]
) -> tuple[list[int], Floats]:
    """One box for each object: the numbers of the first boxes, and what becomes of these boxes.

    The boxes (N, 4) come in the order in which they stay.
    """
    is_taken = np.zeros(len(boxes), bool)
    firsts: list[int] = []
    found = np.empty_like(boxes)
    for first in range(len(boxes)):
        if is_taken[first]:
            continue
        parts = [first]
        is_taken[first] = True
        for part in parts:  # it grows by the parts of an object that is cut in all views
            new = [other for other in alike[part] if not is_taken[other]]
            is_taken[new] = True
            parts += new if cut[first] else []
        found[len(firsts), :2] = boxes[parts, :2].min(0)
        found[len(firsts), 2:] = boxes[parts, 2:].max(0)
        firsts.append(first)
    return firsts, found[: len(firsts)]
