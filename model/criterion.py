"""Training: Hungarian matching and the set-prediction losses of Deformable DETR."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from model.deformable_detr import DetectorOutput, Predictions

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
Match = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Target:
    """The truth of one picture."""

    labels: Tensor  # (N,) int64
    boxes: Tensor  # (N, 4) (cx, cy, w, h) relative to the picture


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms, the same in the loss and in the matching cost, as published."""

    classes: float = 2.0
    boxes: float = 5.0
    giou: float = 2.0


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")


@torch.no_grad()
def match(predictions: Predictions, targets: Sequence[Target], weights: LossWeights) -> list[Match]:
    """For each picture the query indices and target indices (n,), (n,) of the cheapest pairing.

    Source: `HungarianMatcher` of the original: focal class cost, L1 and GIoU box costs.
    """
    matches = []
    for logits, boxes, target in zip(
        predictions.pred_logits, predictions.pred_boxes, targets, strict=True
    ):
        p = logits.float().sigmoid()
        negative = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * -(1 - p + 1e-8).log()
        positive = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * -(p + 1e-8).log()
        cost = (
            weights.classes * (positive - negative)[:, target.labels]
            + weights.boxes * torch.cdist(boxes.float(), target.boxes, p=1)
            - weights.giou * generalized_box_iou(_corners(boxes.float()), _corners(target.boxes))
        )
        rows, columns = linear_sum_assignment(cost.cpu().numpy())
        matches.append((torch.as_tensor(rows), torch.as_tensor(columns)))
    return matches


def set_loss(
    predictions: Predictions, targets: Sequence[Target], weights: LossWeights
) -> dict[str, Tensor]:
    """Unweighted focal, L1 and GIoU losses of one head, each divided by the number of targets."""
    device = predictions.pred_logits.device
    matches = match(predictions, targets, weights)
    picture = torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(matches)]).to(device)
    query = torch.cat([q for q, _ in matches]).to(device)
    labels = torch.cat([t.labels[j.to(device)] for t, (_, j) in zip(targets, matches, strict=True)])
    truth = torch.cat([t.boxes[j.to(device)] for t, (_, j) in zip(targets, matches, strict=True)])
    count = max(sum(len(t.labels) for t in targets), 1)
    wanted = torch.zeros_like(predictions.pred_logits, dtype=torch.float32)
    wanted[picture, query, labels] = 1.0
    focal = sigmoid_focal_loss(
        predictions.pred_logits.float(), wanted, FOCAL_ALPHA, FOCAL_GAMMA, reduction="sum"
    )
    boxes = predictions.pred_boxes.float()[picture, query]
    giou = generalized_box_iou(_corners(boxes), _corners(truth)).diagonal()
    return {
        "loss_ce": focal / count,
        "loss_bbox": F.l1_loss(boxes, truth, reduction="sum") / count,
        "loss_giou": (1 - giou).sum() / count,
    }


def criterion(
    output: DetectorOutput, targets: Sequence[Target], weights: LossWeights | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum over all layers (and two-stage proposals), and the last layer's terms.

    Source: `SetCriterion` of the original; the proposals know only "object", class 0.
    """
    weights = weights or LossWeights()

    def weighted(terms: dict[str, Tensor]) -> Tensor:
        return (
            weights.classes * terms["loss_ce"]
            + weights.boxes * terms["loss_bbox"]
            + weights.giou * terms["loss_giou"]
        )

    last = set_loss(output, targets, weights)
    total = weighted(last)
    for head in output.auxiliary:
        total = total + weighted(set_loss(head, targets, weights))
    if output.encoder is not None:
        objects = [Target(torch.zeros_like(t.labels), t.boxes) for t in targets]
        total = total + weighted(set_loss(output.encoder, objects, weights))
    return total, last
