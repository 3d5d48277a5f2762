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
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.functional import to_tensor

from model.config import COCO_LABELS, FasterRcnnConfig, faster_rcnn, faster_rcnn_v2
from model.detectors import describe
from model.errors import CheckpointError, UnknownName
from model.faster_rcnn import FasterRcnn, build, create_faster_rcnn, own_weights
from model.named import PACKAGED, weights_of
from model.zoo import create_model
from tests.support.detectors import randomized
from tests.support.parameters import others_slow, slow_but

THIN = [((1, 1),), ((3000, 1),), ((1, 500),), ((2, 4001),), ((49, 65317),)]
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def image() -> Pixels:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (30, 40, 3), np.uint8).repeat(6, 0).repeat(6, 1)


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
    state = randomized(lambda: build(config)).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    theirs = builder(weights="COCO_V1").eval()
    torch.save(state, tmp_path / "own.pth")
    assert_equal(create_faster_rcnn(config, tmp_path / "own.pth"), theirs, image)


@pytest.mark.slow
def test_it_equals_torchvision_with_weights_that_were_trained_from_nothing(
    image: Pixels, tmp_path: Path
) -> None:
    """Their batch norms are of another kind."""
    options = {"weights": None, "weights_backbone": None, "num_classes": 20}
    theirs = randomized(lambda: detection.fasterrcnn_resnet50_fpn(**options).eval())
    path = tmp_path / "own.safetensors"
    names = ["", *(f"class {number}" for number in range(1, 20))]
    save_file(theirs.state_dict(), path, {"labels": json.dumps(names)})
    ours = create_faster_rcnn(faster_rcnn(), path)
    assert ours.labels == tuple(names)
    assert_equal(ours, theirs, image)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> FasterRcnn:
    """A detector that finds something."""
    path = tmp_path_factory.mktemp("weights") / "own.pth"
    torch.save(randomized(lambda: build(faster_rcnn())).state_dict(), path)
    return create_faster_rcnn(faster_rcnn(), path)


@pytest.mark.slow
@pytest.mark.parametrize("size", slow_but(THIN[:2], THIN))
def test_thin_images_are_detected_in(size: tuple[int, int], detector: FasterRcnn) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    boxes, scores, labels = detector.detect(image)
    assert len(boxes) == len(scores) == len(labels)
    assert (boxes >= 0).all() and (boxes <= torch.tensor([size[1], size[0]] * 2)).all()


@pytest.mark.slow
def test_boxes_of_a_thin_image_are_those_of_its_repeated_pixels(detector: FasterRcnn) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 4001, 3), np.uint8)
    repeats = 2
    with torch.inference_mode():
        (expected,) = detector.net([to_tensor(image.repeat(repeats, 0))])
    assert len(expected["boxes"])
    boxes, scores, _ = detector.detect(image)
    torch.testing.assert_close(boxes[:, 1::2] * repeats, expected["boxes"][:, 1::2])
    torch.testing.assert_close(scores, expected["scores"])


@pytest.mark.slow
def test_numbers_that_are_not_finite_fail_the_image(image: Pixels) -> None:
    """torchvision drops boxes whose score is NaN."""
    for name in ("rpn.head.cls_logits.bias", "roi_heads.box_predictor.cls_score.bias"):
        broken = create_faster_rcnn(faster_rcnn(), None)
        with torch.no_grad():
            broken.net.get_parameter(name)[0] = torch.nan
        with pytest.raises(RuntimeError, match="output is not finite"):
            broken.detect(image)


@pytest.mark.slow
@pytest.mark.parametrize("eps", others_slow([1e-5, 0.0]))
def test_frozen_norms_of_a_training_say_what_they_add(
    eps: float, image: Pixels, tmp_path: Path
) -> None:
    config = FasterRcnnConfig(labels=("", "cat", "dog"))
    theirs = randomized(lambda: build(config, eps))
    path, labels = tmp_path / "tuned.safetensors", json.dumps(config.labels)
    save_file(theirs.state_dict(), path, {"labels": labels})
    with pytest.raises(CheckpointError, match="does not say with what its batch norms were frozen"):
        create_faster_rcnn(faster_rcnn(), path)
    save_file(theirs.state_dict(), path, {"labels": labels, "batch_norm_eps": str(eps)})
    ours = create_faster_rcnn(faster_rcnn(), path)
    (norm, *_) = [m for m in ours.net.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert norm.eps == eps and ours.labels == config.labels


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


@pytest.mark.slow
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
