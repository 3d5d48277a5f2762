"""The loss equals transformers' on equal outputs."""

import torch
from transformers.loss.loss_deformable_detr import (
    DeformableDetrForObjectDetectionLoss,
)

from model.criterion import criterion
from model.deformable_detr import DetectorOutput, Predictions
from model.matching import Target


def test_loss_equals_transformers() -> None:
    torch.manual_seed(0)
    layers, batch, queries, classes = 3, 2, 20, 7
    logits = torch.randn(layers, batch, queries, classes)
    boxes = torch.rand(layers, batch, queries, 4) * 0.5 + 0.2
    targets = [
        Target(torch.tensor([1, 4, 6]), torch.rand(3, 4) * 0.4 + 0.2),
        Target(torch.tensor([0]), torch.rand(1, 4) * 0.4 + 0.2),
    ]

    class Config:
        class_cost, bbox_cost, giou_cost = 2, 5, 2
        bbox_loss_coefficient, giou_loss_coefficient = 5, 2
        focal_alpha, auxiliary_loss, num_labels, decoder_layers = 0.25, True, classes, layers
        two_stage = False

    labels = [{"class_labels": t.labels, "boxes": t.boxes} for t in targets]
    _, terms, _ = DeformableDetrForObjectDetectionLoss(
        logits[-1], labels, torch.device("cpu"), boxes[-1], Config(), logits, boxes
    )
    heads = [Predictions(logits[i], boxes[i]) for i in range(layers)]
    last = heads.pop()
    output = DetectorOutput(last.pred_logits, last.pred_boxes, tuple(heads))
    total, own = criterion(output, targets)
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        torch.testing.assert_close(own[name], terms[name])
    weights = {"ce": 2.0, "bbox": 5.0, "giou": 2.0}
    expected = sum(
        weights[name.split("_")[1]] * term for name, term in terms.items() if "loss_" in name
    )
    torch.testing.assert_close(total, expected)
