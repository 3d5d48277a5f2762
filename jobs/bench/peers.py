"""transformers' DETR and Deformable DETR with random weights: the independent implementation."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing may be downloaded

from pathlib import Path

import torch
import transformers  # loads its models where they are used, which takes seconds
from safetensors.torch import save_file
from torch import nn

from model import config as configs
from model.named import SET_MODELS, set_config

VARIANTS = [name for name in SET_MODELS if name != "shapes-tiny"]


def peer(name: str, seed: int = 0) -> nn.Module:
    """Make the same variant in transformers, with harmless random parameters and statistics."""
    config = set_config(name)
    torch.manual_seed(seed)
    net: nn.Module = (
        _detr(config) if isinstance(config, configs.DetrConfig) else _deformable_detr(config)
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


def _trunk(levels: tuple[int, ...], dilation: bool) -> transformers.PretrainedConfig:
    return transformers.TimmBackboneConfig(
        backbone="resnet50",
        use_pretrained_backbone=False,
        out_indices=levels,
        output_stride=16 if dilation else 32,
    )


def _deformable_detr(config: configs.DeformableDetrConfig) -> nn.Module:
    return transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(
            backbone_config=_trunk(
                (2, 3, 4) if config.num_feature_levels > 1 else (4,), config.dilation
            ),
            use_timm_backbone=False,
            num_feature_levels=config.num_feature_levels,
            dilation=config.dilation,
            with_box_refine=config.with_box_refine,
            two_stage=config.two_stage,
            num_labels=config.num_classes,
            disable_custom_kernels=True,
        )
    )


def _detr(config: configs.DetrConfig) -> nn.Module:
    return transformers.DetrForObjectDetection(
        transformers.DetrConfig(
            backbone_config=_trunk((4,), config.dilation),
            use_timm_backbone=False,
            dilation=config.dilation,
            num_labels=config.num_classes,
        )
    )


def save_peer(name: str, path: Path) -> None:
    """Save the weights of `peer(name)` as a safetensors file, in transformers' layout."""
    state = peer(name).state_dict()
    save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path)
