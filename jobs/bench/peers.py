"""transformers' Deformable DETR with random weights: the independent implementation."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing may be downloaded

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, TimmBackboneConfig

from model.zoo import MODELS

VARIANTS = [name for name in MODELS if name.startswith("deformable-detr")]


def peer(name: str, seed: int = 0) -> DeformableDetrForObjectDetection:
    """Make the same variant in transformers, with harmless random parameters and statistics."""
    config = MODELS[name].config()
    backbone = TimmBackboneConfig(
        backbone="resnet50",
        use_pretrained_backbone=False,
        out_indices=(2, 3, 4) if config.num_feature_levels > 1 else (4,),
        output_stride=16 if config.dilation else 32,
    )
    torch.manual_seed(seed)
    net = DeformableDetrForObjectDetection(
        DeformableDetrConfig(
            backbone_config=backbone,
            use_timm_backbone=False,
            num_feature_levels=config.num_feature_levels,
            dilation=config.dilation,
            with_box_refine=config.with_box_refine,
            two_stage=config.two_stage,
            num_labels=config.num_classes,
            disable_custom_kernels=True,
        )
    )
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if parameter.dim() > 1 and "backbone" not in key:
                parameter.add_(torch.randn_like(parameter) * 0.02)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for key, buffer in net.named_buffers():
            if key.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer) * 0.1)
            elif key.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return net.eval()


def save_peer(name: str, path: Path) -> None:
    """Save the weights of `peer(name)` as a safetensors file, in transformers' layout."""
    state = peer(name).state_dict()
    save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path)
