"""Detectors of each kind that `label --model` runs, small or with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from model.config import faster_rcnn, faster_rcnn_v2
from model.faster_rcnn import build

OWN = '''
import numpy as np


class Brightest:
    """A box around the brightest part of each third of an image."""

    labels = ["", "left", "middle", "right"]

    def __init__(self, device):
        self.device = device

    def detect(self, image):
        height, width = image.shape[:2]
        boxes, scores, labels = [], [], []
        for label, columns in enumerate(np.array_split(np.arange(width), 3), start=1):
            if len(columns) == 0:
                continue
            part = image[:, columns].sum(2)
            y, x = np.unravel_index(part.argmax(), part.shape)
            x = columns[0] + x
            boxes.append([max(0, x - 9), max(0, y - 9), min(width, x + 9), min(height, y + 9)])
            scores.append(part.max() / 765)
            labels.append(label)
        return boxes, scores, labels
'''
OWN_MODEL = "python:brightest:Brightest"  # in the folder of `save_own`
FASTER_RCNNS = {"faster-rcnn": faster_rcnn, "faster-rcnn-v2": faster_rcnn_v2}
NAMES = {0: "N/A", 1: "cat", 2: "dog"}  # "N/A" is no class
KINDS = ("shapes-tiny", "detr", "detr-dc5", "faster-rcnn", "faster-rcnn-v2", "hf", "python")


def save_own(folder: Path) -> str:
    """Write the module of a user's detector into the folder; return the model's name."""
    (folder / "brightest.py").write_text(OWN)
    return OWN_MODEL


def yolos() -> tuple[Any, Any]:
    """A small random YOLOS, and its image processor."""
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=[64, 96], patch_size=16, num_detection_tokens=12, id2label=NAMES,
    )  # fmt: skip
    return transformers.YolosForObjectDetection(config), transformers.YolosImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 96}
    )


def save_detector(net: Any, processor: Any, folder: Path) -> None:
    """Save a network with random weights, by which its answers differ from image to image."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.normal_(0, 1.5 / module.weight[0].numel() ** 0.5)
    net.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def randomized(make: Callable[[], nn.Module]) -> nn.Module:
    """A Faster R-CNN with weights by which something is detected, the same each time."""
    torch.manual_seed(3)
    net = make()
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.05)
        net.get_parameter("roi_heads.box_predictor.cls_score.weight").mul_(20)
    return net


def model_of_kind(kind: str, folder: Path) -> tuple[str, str | None]:
    """The name of a model of KINDS, and its weights. Its files are written into the folder."""
    if kind == "hf":
        save_detector(*yolos(), folder / "yolos")
        return f"hf:{folder / 'yolos'}", None
    if kind == "python":
        return save_own(folder), None
    if kind in FASTER_RCNNS:
        file, config = folder / f"{kind}.pth", FASTER_RCNNS[kind]()
        torch.save(randomized(lambda: build(config)).state_dict(), file)
        return kind, str(file)
    return kind, None if kind == "shapes-tiny" else "random"
