"""Faster R-CNN equals torchvision's, with its own kinds of checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import detection
from torchvision.models._api import WeightsEnum
from torchvision.transforms.functional import to_tensor

from model.config import COCO_LABELS, FasterRcnnConfig, faster_rcnn, faster_rcnn_v2
from model.detectors import describe
from model.errors import CheckpointError, UnknownName
from model.faster_rcnn import FasterRcnn, build, create_faster_rcnn, own_weights
from model.named import PACKAGED, weights_of
from model.zoo import create_model

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def image() -> Pixels:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (30, 40, 3), np.uint8).repeat(6, 0).repeat(6, 1)


def randomize(net: nn.Module) -> nn.Module:
    """Weights that differ from layer to layer, with which something is detected."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif tensor.dim() == 1 and tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.05)
        net.get_parameter("roi_heads.box_predictor.cls_score.weight").mul_(20)
    return net


def assert_equal(ours: FasterRcnn, theirs: nn.Module, image: Pixels) -> None:
    for net in (ours.net, theirs):  # smaller than published, which takes less time
        vars(net.get_submodule("transform"))["min_size"] = (240,)
    with torch.inference_mode():
        (expected,) = theirs([to_tensor(image)])
    boxes, scores, labels = ours.detect(image)
    assert len(expected["scores"]) > 3
    assert torch.equal(labels, expected["labels"])
    torch.testing.assert_close(boxes, expected["boxes"], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, expected["scores"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("builder", "config"),
    [
        (detection.fasterrcnn_resnet50_fpn, faster_rcnn()),
        pytest.param(
            detection.fasterrcnn_resnet50_fpn_v2, faster_rcnn_v2(), marks=pytest.mark.slow
        ),
    ],
)
def test_it_equals_torchvision_with_its_own_checkpoint(
    builder: Callable[..., nn.Module],
    config: FasterRcnnConfig,
    image: Pixels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchvision builds another network for its checkpoint, whose download is replaced here."""
    state = randomize(build(config)).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    theirs = builder(weights="COCO_V1").eval()
    torch.save(state, tmp_path / "own.pth")
    assert_equal(create_faster_rcnn(config, tmp_path / "own.pth"), theirs, image)


def test_it_equals_torchvision_with_weights_that_were_trained_from_nothing(
    image: Pixels, tmp_path: Path
) -> None:
    """Their batch norms are of another kind."""
    theirs = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=20)
    randomize(theirs.eval())
    path = tmp_path / "own.safetensors"
    names = ["", *(f"class {number}" for number in range(1, 20))]
    save_file(theirs.state_dict(), path, {"labels": json.dumps(names)})
    ours = create_faster_rcnn(faster_rcnn(), path)
    assert ours.labels == tuple(names)
    assert_equal(ours, theirs, image)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 1), (2, 4001)])
def test_thin_images_are_detected_in(size: tuple[int, int]) -> None:
    boxes, scores, labels = create_faster_rcnn(faster_rcnn(), None).detect(
        np.full((*size, 3), 99, np.uint8)
    )
    assert len(boxes) == len(scores) == len(labels)
    assert (boxes >= 0).all() and (boxes <= torch.tensor([size[1], size[0]] * 2)).all()


def test_its_own_weights_and_classes_are_those_of_torchvision() -> None:
    kinds: list[Any] = [
        detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
        detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    ]
    for config, name, own in zip(
        (faster_rcnn(), faster_rcnn_v2()), ("faster-rcnn", "faster-rcnn-v2"), kinds, strict=True
    ):
        assert weights_of(name) == own_weights(config) == own.url
        named = ["" if c in ("N/A", "__background__") else c for c in own.meta["categories"]]
        assert tuple(named) == COCO_LABELS


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in build(faster_rcnn()).state_dict().items()}
    save_file(state, tmp_path / "frcnn.safetensors")
    with pytest.raises(CheckpointError, match=r"weights of Faster R-CNN, and this model is DETR"):
        create_model("detr", str(tmp_path / "frcnn.safetensors"))
    with pytest.raises(CheckpointError, match="does not fit this model"):
        create_faster_rcnn(faster_rcnn_v2(), tmp_path / "frcnn.safetensors")
    with pytest.raises(CheckpointError, match="Deformable DETR, and this model is Faster R-CNN"):
        describe("faster-rcnn", str(PACKAGED))
    key = "roi_heads.box_predictor.cls_score"
    for name in (f"{key}.weight", f"{key}.bias"):
        state[name] = state[name][:5].clone()
    save_file(state, tmp_path / "five.safetensors")
    with pytest.raises(CheckpointError, match=r"has 5 classes, whose names it does not say"):
        create_faster_rcnn(faster_rcnn(), tmp_path / "five.safetensors")


def test_commands_that_look_into_a_network_refuse_it() -> None:
    with pytest.raises(UnknownName, match=r"faster-rcnn is torchvision's"):
        create_model("faster-rcnn", "random")
