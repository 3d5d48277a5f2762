"""Training: which query answers for which object."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from model.class_loss import ClassLoss
from model.predictions import Predictions

Match = tuple[Tensor, Tensor]  # query indices and target indices, (n,) and (n,)


@dataclass(frozen=True)
class Target:
    """The truth of one image."""

    labels: Tensor  # (N,) int64
    boxes: Tensor  # (N, 4) (cx, cy, w, h) relative to the image

    def to(self, device: str) -> "Target":
        return Target(self.labels.to(device), self.boxes.to(device))

    def repeat(self, times: int) -> "Target":
        return Target(self.labels.repeat(times), self.boxes.repeat(times, 1))


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of boxes, the same in the loss and in the cost of a match.

    As published, in both families. Classes have a weight of their own, `ClassLoss.weight`.
    """

    boxes: float = 5.0
    giou: float = 2.0


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) as (cx, cy, w, h) to (x_min, y_min, x_max, y_max)."""
    return box_convert(boxes, "cxcywh", "xyxy")


@torch.no_grad()
def match(
    predictions: Predictions, targets: Sequence[Target], weights: LossWeights, classes: ClassLoss
) -> list[Match]:
    """For each image the query indices and target indices (n,), (n,) of the cheapest pairing.

    Source: `HungarianMatcher` of the original: class cost, L1 and GIoU box costs.
    """
    matches = []
    for logits, boxes, target in zip(
        predictions.pred_logits, predictions.pred_boxes, targets, strict=True
    ):
        cost = (
            classes.weight * classes.cost(logits, target.labels)
            + weights.boxes * torch.cdist(boxes.float(), target.boxes, p=1)
            - weights.giou * generalized_box_iou(corners(boxes.float()), corners(target.boxes))
        )
        rows, columns = linear_sum_assignment(cost.cpu().numpy())
        matches.append((torch.as_tensor(rows), torch.as_tensor(columns)))
    return matches
