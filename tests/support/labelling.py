"""Inputs of tests of `label`: a tiny model with random weights, options, and images in a store."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from jobs.label.options import LabelOptions
from model.checkpoint import save_weights
from model.zoo import create_deformable_detr
from pipeline.storage.files import open_location


def save_tiny_weights(folder: Path) -> str:
    """Save random weights of `shapes-tiny`, the same for all processes; return the path.

    They never find number 0, which stands for no class, so that 100 boxes of each image are kept.
    """
    path = folder / "tiny.safetensors"
    net = create_deformable_detr("shapes-tiny", "random", training=True)
    for head in net.class_embed:
        assert isinstance(head, torch.nn.Linear)
        torch.nn.init.constant_(head.bias[:1].detach(), -20.0)
    save_weights(net, path, {})
    return str(path)


def tiny_options(
    source: Path | str, output: Path | str, weights: str, **other: Any
) -> LabelOptions:
    """Make options that keep all boxes, compute in fp32, and write no page."""
    defaults: dict[str, Any] = {"score_threshold": 0.0, "precision": "fp32", "page": False}
    return LabelOptions(
        str(source), str(output), model="shapes-tiny", weights=weights, **(defaults | other)
    )


def put_images(url: str) -> None:
    """Write three images and one broken file below `url`."""
    fs, path = open_location(url, "INPUT")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (70, 90, 3), np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        fs.pipe_file(f"{path}/deep/er/{index}.png", data.getvalue())
    fs.pipe_file(f"{path}/broken.jpg", b"not an image")
