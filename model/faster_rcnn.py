"""Faster R-CNN with a feature pyramid, which is torchvision's own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from model.checkpoint import load_state, read_weights
from model.config import FasterRcnnConfig
from model.errors import CheckpointError
from model.image_detector import Found
from model.weights_file import CLASS_HEADS, labels_of

LONGEST = 1333  # pixels of a side that torchvision resizes to


def build(config: FasterRcnnConfig, frozen: bool = True) -> nn.Module:
    """torchvision's network of a configuration, with new weights, in evaluation mode.

    `frozen` is about the batch norms of the first version, which can be of two kinds: those of
    torchvision's own checkpoint are frozen and divide by the deviation alone; those of a network
    that was trained from new weights add a small number to it.
    """
    if config.version == 2:
        return detection.fasterrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=len(config.labels)
        ).eval()
    if not frozen:
        return detection.fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=len(config.labels)
        ).eval()
    trunk = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=0
    )
    net = detection.FasterRCNN(trunk, num_classes=len(config.labels))
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = 0.0
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

    @torch.inference_mode()
    def detect(self, image: npt.NDArray[np.uint8]) -> Found:
        """Detect in an image (H, W, 3) uint8, see `ImageDetector.detect`."""
        pixels = torch.tensor(image, device=self.device).permute(2, 0, 1)
        # torchvision would make a very thin image 0 pixels wide: its pixels are repeated.
        height, width = (-(-max(image.shape[:2]) // (LONGEST * side)) for side in image.shape[:2])
        pixels = pixels.repeat_interleave(height, 1).repeat_interleave(width, 2)
        (found,) = self.net([pixels.float() / 255])
        boxes = found["boxes"].cpu() / torch.tensor([width, height, width, height])
        return boxes, found["scores"].cpu(), found["labels"].cpu()


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
    under `labels` in its metadata, the first of which is "" and stands for the background.

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
    trained = any(name.endswith("num_batches_tracked") for name in state)
    net = build(config, frozen=not trained)
    load_state(net, state, str(path))
    return FasterRcnn(net, config.labels, device)
