"""The twelve numbers of COCO, computed by pycocotools one class at a time.

Classes do not affect each other in COCO's evaluation. Each class is therefore evaluated alone,
over only those images that hold it or have a detection of it. The numbers are the same as in one
evaluation of all classes, for a fraction of the memory and time.
"""

import contextlib
import io
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from jobs.coco.records import Annotation, Annotations

METRICS = tuple("AP AP50 AP75 AP_S AP_M AP_L AR_1 AR_10 AR_100 AR_S AR_M AR_L".split())
# Decimals of a pixel: float32 holds three of them for coordinates in the thousands. Without this
# rounding an overlap of exactly 0.75 in another tool's file is less in a table: AP is .5041 where
# the published pair has .5046.
DECIMALS = 3
UNKNOWN = -1.0  # pycocotools' value where there is no object to find


@dataclass(frozen=True)
class Found:
    """Detections, best first within each image."""

    image_ids: NDArray[Any]  # (N,) image ids of the annotation file, as strings
    class_ids: NDArray[Any]  # (N,) category ids of the annotation file
    scores: NDArray[Any]  # (N,)
    boxes: NDArray[Any]  # (N, 4) x_min, y_min, x_max, y_max in pixels


@dataclass(frozen=True)
class ClassScore:
    """The score of one class."""

    class_id: int
    name: str
    objects: int  # crowds are not counted
    detections: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Score:
    """The score of all classes.

    `metrics` are the means over classes of METRICS in [0, 1], or UNKNOWN where there is no such
    object. `classes` holds the score of each class.
    """

    metrics: dict[str, float]
    classes: list[ClassScore] = field(default_factory=list)


def average_precision(
    truth: Annotations, found: Found, images: Collection[str] | None = None
) -> Score:
    """Run COCO's evaluation of boxes over `images` of the annotations (None: all images).

    Detections of other images or classes do not count.
    """
    wanted = set(truth.images) if images is None else set(images)
    numbers = {image: number for number, image in enumerate(sorted(wanted, key=_id_order), 1)}
    objects: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in truth.annotations:
        if annotation.image_id in wanted:
            entry = _object_entry(annotation, numbers)
            objects[annotation.category_id].append(entry)
    classes, precision, recall = [], [], []
    order = np.argsort(found.class_ids, kind="stable")
    class_ids = found.class_ids[order]
    for class_id, name in sorted(truth.classes.items()):
        first, end = np.searchsorted(class_ids, [class_id, class_id + 1])
        boxes = _detection_entries(found, order[first:end], numbers)
        accumulated = _evaluate_class(objects[class_id], boxes)
        precision.append(accumulated["precision"])
        recall.append(accumulated["recall"])
        count = sum(not entry["iscrowd"] for entry in objects[class_id])
        metrics = _summarize_metrics(precision[-1:], recall[-1:])
        classes.append(ClassScore(class_id, name, count, len(boxes), metrics))
    overall = _summarize_metrics(precision, recall) if classes else dict.fromkeys(METRICS, UNKNOWN)
    return Score(overall, classes)


def _id_order(image_id: str) -> tuple[bool, int, str]:
    """Return a sort key that puts numbers first, by size, then other texts.

    pycocotools breaks ties of scores in this order.
    """
    is_number = image_id.isdecimal()
    return not is_number, len(image_id) if is_number else 0, image_id


def _object_entry(annotation: Annotation, numbers: Mapping[str, int]) -> dict[str, Any]:
    """Convert an annotation to pycocotools' format."""
    return {
        "image_id": numbers[annotation.image_id],
        "bbox": list(annotation.bbox),
        "area": annotation.area,
        "iscrowd": int(annotation.iscrowd),
    }


def _detection_entries(
    found: Found, rows: NDArray[Any], numbers: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Convert rows of `found` to pycocotools' format, and skip images that have no number."""
    boxes = np.round(found.boxes[rows].astype(float), DECIMALS)
    boxes[:, 2:] = np.round(boxes[:, 2:] - boxes[:, :2], DECIMALS)
    return [
        {
            "image_id": numbers[image_id],
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
        }
        for image_id, box, score in zip(
            found.image_ids[rows].tolist(),
            boxes.tolist(),
            found.scores[rows].tolist(),
            strict=True,
        )
        if image_id in numbers
    ]


def _evaluate_class(objects: list[dict[str, Any]], boxes: list[dict[str, Any]]) -> dict[str, Any]:
    """Evaluate one class with pycocotools.

    The result has `precision` (T, R, 1, A, M) and `recall` (T, 1, A, M).
    """
    if not objects and not boxes:
        limits = Params("bbox")
        shape = (len(limits.iouThrs), 1, len(limits.areaRng), len(limits.maxDets))
        recall = np.full(shape, UNKNOWN)
        return {
            "precision": np.repeat(recall[:, None], len(limits.recThrs), axis=1),
            "recall": recall,
        }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on stdout
        ids = {entry["image_id"] for entry in (*objects, *boxes)}
        evaluation = COCOeval(_make_coco(ids, objects), _make_coco(ids, boxes), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    accumulated: dict[str, Any] = evaluation.eval
    return accumulated


def _make_coco(image_ids: Collection[int], entries: list[dict[str, Any]]) -> COCO:
    """Make a COCO dataset of one class from entries.

    Ids start at 1, because pycocotools takes 0 for none.
    """
    coco = COCO()
    coco.dataset = {
        "images": [{"id": name} for name in image_ids],
        "categories": [{"id": 1}],
        "annotations": [{**entry, "category_id": 1, "id": i} for i, entry in enumerate(entries, 1)],
    }
    coco.createIndex()
    return coco


def _summarize_metrics(
    precision: list[NDArray[Any]], recall: list[NDArray[Any]]
) -> dict[str, float]:
    """Compute METRICS over some classes."""
    evaluation = COCOeval(iouType="bbox")
    evaluation.eval = {
        "precision": np.concatenate(precision, axis=2),
        "recall": np.concatenate(recall, axis=1),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return dict(zip(METRICS, np.asarray(evaluation.stats, float).tolist(), strict=True))
