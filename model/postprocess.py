"""From logits and relative boxes to scored boxes in pixels."""

import torch
from torch import Tensor

from model.detector import Detections
from model.predictions import Predictions
from model.ranking import largest


def best_pairs(output: Predictions, sizes: Tensor, top: int = 100) -> Detections:
    """The `top` best (query, class) pairs of each image; a query may appear under two classes.

    Of equal scores the pair of the lower query, then of the lower class, comes first.
    `sizes` (B, 2) are heights and widths in pixels of the images that boxes shall refer to.
    Source: `PostProcess` of Deformable DETR's original implementation.
    """
    _, queries, classes = output.pred_logits.shape
    probability = output.pred_logits.float().sigmoid().flatten(1)
    index = largest(probability, min(top, queries * classes))
    query = torch.div(index, classes, rounding_mode="floor")
    return _detections(output, sizes, probability.gather(1, index), index % classes, query)


def best_queries(output: Predictions, sizes: Tensor, top: int = 100) -> Detections:
    """The `top` best queries of each image, each under its best class.

    The last logit stands for "no object", which takes its part of the scores. Of equal scores that
    of the lower query comes first, and of equal classes of a query the lower one. `sizes` are as in
    `best_pairs`. Source: `PostProcess` of DETR's original implementation.
    """
    batch, queries, _ = output.pred_logits.shape
    probability = output.pred_logits.float().softmax(-1)[..., :-1].flatten(0, 1)
    label = largest(probability, 1)
    best = probability.gather(1, label).view(batch, queries)
    query = largest(best, min(top, queries))
    labels = label.view(batch, queries).gather(1, query)
    return _detections(output, sizes, best.gather(1, query), labels, query)


def _detections(
    output: Predictions, sizes: Tensor, scores: Tensor, labels: Tensor, query: Tensor
) -> Detections:
    """Detections with these scores and labels (B, N), and the boxes of these queries (B, N)."""
    centre, extent = output.pred_boxes.float().split(2, dim=-1)
    corners = torch.cat((centre - extent / 2, centre + extent / 2), dim=-1)
    boxes = corners.gather(1, query[..., None].expand(-1, -1, 4))
    # 0, or NaN for an image of which a number is not finite. A threshold would drop its boxes.
    overflow = 0 * (output.pred_logits.float().sum((1, 2)) + output.pred_boxes.float().sum((1, 2)))
    scale = sizes.to(boxes).flip(1).repeat(1, 2)[:, None]  # (B, 1, 4): W, H, W, H
    return Detections(scores + overflow[:, None], labels, boxes.clamp(0, 1) * scale)
