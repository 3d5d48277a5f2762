"""The losses equal transformers' on equal outputs."""

import pytest
import torch

from model.class_loss import ClassLoss, CrossEntropy, FocalLoss
from model.criterion import criterion
from model.matching import Target
from model.predictions import DetectorOutput, Predictions


@pytest.mark.parametrize(
    ("theirs", "classes", "weight"),
    [
        ("DeformableDetrForObjectDetection", FocalLoss(), 2.0),
        ("ForObjectDetection", CrossEntropy(), 1.0),
    ],
)
@pytest.mark.parametrize("objects", [(3, 1), (0, 2), (0, 0)])
def test_loss_equals_transformers(
    theirs: str, classes: ClassLoss, weight: float, objects: tuple[int, int]
) -> None:
    from transformers.loss.loss_utils import LOSS_MAPPING  # takes seconds

    torch.manual_seed(0)
    layers, batch, queries, count = 3, 2, 20, 7
    extra = isinstance(classes, CrossEntropy)  # an output for "no object"
    logits = torch.randn(layers, batch, queries, count + extra)
    boxes = torch.rand(layers, batch, queries, 4) * 0.5 + 0.2
    targets = [
        Target(torch.randint(count, (number,)), torch.rand(number, 4) * 0.4 + 0.2)
        for number in objects
    ]

    class Config:
        class_cost, bbox_cost, giou_cost = weight, 5, 2
        bbox_loss_coefficient, giou_loss_coefficient = 5, 2
        focal_alpha, eos_coefficient = 0.25, 0.1
        auxiliary_loss, num_labels, decoder_layers = True, count, layers
        two_stage = False

    labels = [{"class_labels": t.labels, "boxes": t.boxes} for t in targets]
    _, terms, _ = LOSS_MAPPING[theirs](
        logits[-1], labels, torch.device("cpu"), boxes[-1], Config(), logits, boxes
    )
    heads = [Predictions(logits[i], boxes[i]) for i in range(layers)]
    last = heads.pop()
    output = DetectorOutput(last.pred_logits, last.pred_boxes, tuple(heads))
    total, own = criterion(output, targets, classes)
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        torch.testing.assert_close(own[name], terms[name])
    weights = {"ce": weight, "bbox": 5.0, "giou": 2.0}
    expected = sum(
        weights[name.split("_")[1]] * term for name, term in terms.items() if "loss_" in name
    )
    torch.testing.assert_close(total, expected)
