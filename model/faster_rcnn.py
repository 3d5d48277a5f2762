"""Faster R-CNN with a feature pyramid, which is torchvision's own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from model.checkpoint import State, load_state, read_weights
from model.config import FasterRcnnConfig
from model.errors import CheckpointError
from model.image_detector import Found, NotFinite
from model.weights_file import CLASS_HEADS, labels_of

LONGEST = 1333  # pixels of a side that torchvision resizes to


def build(config: FasterRcnnConfig, eps: float | None = 0.0) -> nn.Module:
    """torchvision's network of a configuration, with new weights, in evaluation mode.

    `eps` is about the batch norms of the first version, which torchvision's checkpoint has frozen:
    the number that they add to a variance. None for those of a network that was trained from new
    weights, which are not frozen.
    """
    if config.version == 2:
        return detection.fasterrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=len(config.labels)
        ).eval()
    if eps is None:
        return detection.fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=len(config.labels)
        ).eval()
    trunk = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=0
    )
    net = detection.FasterRCNN(trunk, num_classes=len(config.labels))
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = eps
    return net.eval()


class FasterRcnn:
    """torchvision's Faster R-CNN + FPN on its device. It meets `ImageDetector`.

    torchvision normalises and resizes images itself, and clips, filters and sorts boxes. Its
    checkpoints have 37.0 AP (`faster-rcnn`) and 46.7 AP (`faster-rcnn-v2`) on COCO val2017. The
    42.0 AP that tables print beside DETR's is a longer training, whose weights torchvision does
    not have.
    """

    def __init__(self, net: nn.Module, labels: Sequence[str], device: str):
        self.net, self.device = net.to(device), device
        self.labels = tuple(labels)
        self._is_finite = True
        for head in ("rpn.head", "roi_heads.box_predictor"):  # torchvision would drop their NaN
            net.get_submodule(head).register_forward_hook(self._look)

    def _look(self, _: nn.Module, __: object, output: Tensor | Sequence[Any]) -> None:
        """Remember whether an output has a number that is not finite."""
        self._is_finite &= _is_finite(output)

    @torch.inference_mode()
    def detect(self, image: npt.NDArray[np.uint8]) -> Found:
        """Detect in an image (H, W, 3) uint8, see `ImageDetector.detect`."""
        pixels = torch.tensor(image, device=self.device).permute(2, 0, 1)
        # torchvision would make a very thin image 0 pixels wide: its pixels are repeated.
        longer = 1.01 * max(image.shape[:2])
        rows, columns = (math.ceil(longer / (LONGEST * side)) for side in image.shape[:2])
        if rows > 1 or columns > 1:
            pixels = pixels.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
        self._is_finite = True
        (found,) = self.net([pixels.float() / 255])
        if not self._is_finite:
            raise NotFinite
        boxes = found["boxes"].cpu() / torch.tensor([columns, rows, columns, rows])
        return boxes, found["scores"].cpu(), found["labels"].cpu()


def _is_finite(output: Tensor | Sequence[Any]) -> bool:
    """Whether all numbers of a tensor, or of tensors in sequences, are finite."""
    if isinstance(output, Tensor):
        return bool(output.isfinite().all())
    return all(map(_is_finite, output))


def own_weights(config: FasterRcnnConfig) -> str:
    """The address of torchvision's checkpoint."""
    own: Any = (
        detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
        if config.version == 1
        else detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1
    )
    return str(own.url)


def create_faster_rcnn(
    config: FasterRcnnConfig, path: Path | None, device: str = "cpu", sha256: str | None = None
) -> FasterRcnn:
    """A detector with the weights of a file, or (None) with random ones.

    The file is torchvision's checkpoint, or one of the same network for other classes. As no
    checkpoint of torchvision names its classes, that is a safetensors file with a list of names
    under `labels` in its metadata, the first of which is "" and stands for the background. Where
    the first version has frozen batch norms, `batch_norm_eps` in the metadata says what they add to
    a variance: 0 if the training began with torchvision's detector, 1e-5 if with its trunk alone.

    Raises CheckpointError if the file cannot be read, does not fit, or names no classes.
    """
    if path is None:
        torch.manual_seed(0)
        return FasterRcnn(build(config), config.labels, device)
    state, metadata = read_weights(path, sha256)
    if "labels" in metadata:
        config = replace(config, labels=tuple(labels_of(metadata, state, str(path))))
    key, _ = CLASS_HEADS[-1]
    classes = len(state.get(key, ()))
    if classes not in (0, len(config.labels)):
        raise CheckpointError(
            f"{path} has {classes} classes, whose names it does not say: save it as .safetensors, "
            'with their list as JSON under `labels` in its metadata (the first is "")'
        )
    net = build(config, _eps_of(state, metadata, str(path)) if config.version == 1 else 0.0)
    load_state(net, state, str(path))
    return FasterRcnn(net, config.labels, device)


def _eps_of(state: State, metadata: Mapping[str, str], source: str) -> float | None:
    """The `eps` of `build` for a checkpoint of the first version."""
    if any(name.endswith("num_batches_tracked") for name in state):
        return None
    if "labels" not in metadata:
        return 0.0
    try:
        return float(metadata["batch_norm_eps"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{source} does not say with what its batch norms were frozen: write `batch_norm_eps` "
            "into its metadata, 0 if the training began with torchvision's detector (COCO_V1), "
            "1e-5 if with its trunk alone (weights_backbone)"
        ) from error
