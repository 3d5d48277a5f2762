"""Training: the set-prediction losses of Deformable DETR."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from model.deformable_detr import DetectorOutput, Predictions
from model.matching import (
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    LossWeights,
    Match,
    Target,
    corners,
    match,
)


def set_loss(
    predictions: Predictions,
    targets: Sequence[Target],
    matches: Sequence[Match],
    objectness: bool = False,
) -> dict[str, Tensor]:
    """Unweighted focal, L1 and GIoU losses of one head, each divided by the number of matches.

    With `objectness`, a matched query is to say class 0 beside its own.
    """
    device = predictions.pred_logits.device
    image = torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(matches)]).to(device)
    query = torch.cat([q for q, _ in matches]).to(device)
    labels = torch.cat([t.labels[j.to(device)] for t, (_, j) in zip(targets, matches, strict=True)])
    truth = torch.cat([t.boxes[j.to(device)] for t, (_, j) in zip(targets, matches, strict=True)])
    count = max(len(labels), 1)
    wanted = torch.zeros_like(predictions.pred_logits, dtype=torch.float32)
    wanted[image, query, labels] = 1.0
    if objectness:
        wanted[image, query, 0] = 1.0
    focal = sigmoid_focal_loss(
        predictions.pred_logits.float(), wanted, FOCAL_ALPHA, FOCAL_GAMMA, reduction="sum"
    )
    boxes = predictions.pred_boxes.float()[image, query]
    giou = generalized_box_iou(corners(boxes), corners(truth)).diagonal()
    return {
        "loss_ce": focal / count,
        "loss_bbox": F.l1_loss(boxes, truth, reduction="sum") / count,
        "loss_giou": (1 - giou).sum() / count,
    }


def criterion(
    output: DetectorOutput,
    targets: Sequence[Target],
    weights: LossWeights | None = None,
    *,
    proposals_per_object: int = 1,
    named_proposals: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum over all layers (and two-stage proposals), and the last layer's terms.

    Source: `SetCriterion` of the original, whose proposals know only "object", class 0; the
    options are for training from scratch in little time, where those learn too slowly.

    Args:
        output: of a model that is training.
        targets: B of them.
        weights: of the terms.
        proposals_per_object: how many of the encoder's proposals each object is matched with
            (one-to-many matching: Jia et al. 2023, H-DETR).
        named_proposals: they learn the object's class as well; the dataset must not use class 0.
    """
    weights = weights or LossWeights()

    def weighted(terms: dict[str, Tensor]) -> Tensor:
        return (
            weights.classes * terms["loss_ce"]
            + weights.boxes * terms["loss_bbox"]
            + weights.giou * terms["loss_giou"]
        )

    last = set_loss(output, targets, match(output, targets, weights))
    total = weighted(last)
    for head in output.auxiliary:
        total = total + weighted(set_loss(head, targets, match(head, targets, weights)))
    if output.encoder is not None:
        copies = [t.repeat(proposals_per_object) for t in targets]
        objects = [Target(torch.zeros_like(t.labels), t.boxes) for t in copies]
        wanted = copies if named_proposals else objects
        matches = match(output.encoder, wanted, weights)
        total = total + weighted(set_loss(output.encoder, wanted, matches, named_proposals))
    return total, last
