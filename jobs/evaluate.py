"""COCO average precision, by pycocotools."""

import contextlib
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def average_precision(truth: dict[str, Any], detections: list[dict[str, Any]]) -> dict[str, float]:
    """AP, AP50, AP75 and AP by size, in [0, 1] (-1 where there is no such object).

    `truth` is a COCO annotation document; `detections` COCO results (image_id, category_id, bbox
    [x, y, w, h] in pixels, score). Without any detection every AP is 0.
    """
    names = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
    if not detections:
        return dict.fromkeys(names, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on stdout
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(names, np.asarray(evaluation.stats[:6], float).tolist(), strict=True))
