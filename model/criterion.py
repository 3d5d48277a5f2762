"""Training: the set-prediction losses of DETR and Deformable DETR."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from model.class_loss import ClassLoss, FocalLoss
from model.matching import (
    LossWeights,
    Match,
    Target,
    corners,
    match,
)
from model.predictions import DetectorOutput, Predictions


def set_loss(
    predictions: Predictions,
    targets: Sequence[Target],
    matches: Sequence[Match],
    classes: ClassLoss,
) -> dict[str, Tensor]:
    """Unweighted class, L1 and GIoU losses of one head; the latter divided by the matches."""
    device = predictions.pred_logits.device
    image = torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(matches)]).to(device)
    query = torch.cat([q for q, _ in matches]).to(device)
    labels = torch.cat([t.labels[j.to(device)] for t, (_, j) in zip(targets, matches, strict=True)])
    truth = torch.cat([t.boxes[j.to(device)] for t, (_, j) in zip(targets, matches, strict=True)])
    count = max(len(labels), 1)
    boxes = predictions.pred_boxes.float()[image, query]
    giou = generalized_box_iou(corners(boxes), corners(truth)).diagonal()
    return {
        "loss_ce": classes.loss(predictions.pred_logits, image, query, labels),
        "loss_bbox": F.l1_loss(boxes, truth, reduction="sum") / count,
        "loss_giou": (1 - giou).sum() / count,
    }


def criterion(
    output: DetectorOutput,
    targets: Sequence[Target],
    classes: ClassLoss,
    weights: LossWeights | None = None,
    *,
    proposals_per_object: int = 1,
    named_proposals: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum over all layers (and two-stage proposals), and the last layer's terms.

    Source: `SetCriterion` of the originals. Proposals of Deformable DETR know only "object", class
    0; the options are for training from scratch in little time, where those learn too slowly.

    Args:
        output: of a model that is training.
        targets: B of them.
        classes: how the classes of this family count.
        weights: of the terms of boxes.
        proposals_per_object: how many of the encoder's proposals each object is matched with
            (one-to-many matching: Jia et al. 2023, H-DETR).
        named_proposals: they learn the object's class as well; the dataset must not use class 0.
    """
    weights = weights or LossWeights()

    def weighted(terms: dict[str, Tensor]) -> Tensor:
        return (
            classes.weight * terms["loss_ce"]
            + weights.boxes * terms["loss_bbox"]
            + weights.giou * terms["loss_giou"]
        )

    last = set_loss(output, targets, match(output, targets, weights, classes), classes)
    total = weighted(last)
    for head in output.auxiliary:
        matches = match(head, targets, weights, classes)
        total = total + weighted(set_loss(head, targets, matches, classes))
    if output.encoder is not None:
        copies = [t.repeat(proposals_per_object) for t in targets]
        objects = [Target(torch.zeros_like(t.labels), t.boxes) for t in copies]
        wanted = copies if named_proposals else objects
        proposals = FocalLoss(objectness=named_proposals)
        matches = match(output.encoder, wanted, weights, proposals)
        total = total + weighted(set_loss(output.encoder, wanted, matches, proposals))
    return total, last
