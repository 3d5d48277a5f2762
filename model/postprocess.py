"""From logits and relative boxes to scored boxes in pixels."""

import torch
from torch import Tensor

from model.deformable_detr import Predictions
from model.detector import Detections
from model.ranking import largest


def postprocess(output: Predictions, sizes: Tensor, top: int = 100) -> Detections:
    """The `top` best (query, class) pairs of each image; a query may appear under two classes.

    Of equal scores the pair of the lower query, then of the lower class, comes first.
    `sizes` (B, 2) are heights and widths in pixels of the images that boxes shall refer to.
    Source: `PostProcess` of the original implementation.
    """
    _, queries, classes = output.pred_logits.shape
    probability = output.pred_logits.float().sigmoid().flatten(1)
    index = largest(probability, min(top, queries * classes))
    centre, extent = output.pred_boxes.float().split(2, dim=-1)
    corners = torch.cat((centre - extent / 2, centre + extent / 2), dim=-1)
    query = torch.div(index, classes, rounding_mode="floor")
    boxes = corners.gather(1, query[..., None].expand(-1, -1, 4))
    # 0, or NaN for an image of which a number is not finite. A threshold would drop its boxes.
    overflow = 0 * (output.pred_logits.float().sum((1, 2)) + output.pred_boxes.float().sum((1, 2)))
    scores = probability.gather(1, index) + overflow[:, None]
    scale = sizes.to(boxes).flip(1).repeat(1, 2)[:, None]  # (B, 1, 4): W, H, W, H
    return Detections(scores, index % classes, (boxes.clamp(0, 1) * scale))
