"""Rewrite a detector for inference, so that fewer and larger operations give equal results."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.deformable_detr import DeformableDetr
from model.detr import Detr, DetrDecoderLayer, DetrEncoderLayer, projections
from model.fused_convolution import BatchNorm, FusedConv2d, folded
from model.fused_layers import FusedLinear
from model.int8 import Int8FeedForward
from model.ms_deform_attn import MSDeformAttn
from model.ops import by_triton
from model.stem import FusedStem, is_stem
from model.transformer import DecoderLayer, EncoderLayer

FUSED = (MSDeformAttn, EncoderLayer, DecoderLayer)


@torch.no_grad()
def prepare_for_inference(
    net: DeformableDetr, dtype: torch.dtype, trunk_dtype: torch.dtype | None = None
) -> DeformableDetr:
    """Fold, fuse and cast the layers of `net` in place, on its device.

    The result cannot be converted back to a checkpoint.

    - Batch norms are folded into the convolutions before them, in fp32, and the bias of a
      shortcut into that of the convolution that adds the shortcut.
    - Sums and ReLUs become part of the convolution or the linear layer before them.
    - On GPUs, projections, norms and positions of the pyramid are written as one sequence.
    - One linear layer computes offsets and attention weights. Another computes the values of all
      decoder layers. The offsets' bias is added within the attention, in fp32.
    - Without two-stage proposals the first self-attention of the queries is computed here, because
      it is the same for all images.
    - Trunk, encoder and decoder are cast to `dtype`, but the trunk to `trunk_dtype` if that is
      given. Heads, proposals, reference points and sampling locations stay fp32.
    """
    net.refuse_if_prepared()
    net.eval()
    _prepare_trunk(net, trunk_dtype or dtype)
    for _, norm in _projections(net):
        norm.to(dtype)
    prepare_transformer(net, dtype)
    return net.requires_grad_(False)


@torch.no_grad()
def prepare_in_int8(net: DeformableDetr, dtype: torch.dtype) -> DeformableDetr:
    """`prepare_for_inference`, with the feed-forward networks of the encoder in int8."""
    net.refuse_if_prepared()
    for layer in net.transformer.encoder.layers:
        assert isinstance(layer, EncoderLayer)
        linear1, linear2 = _linears((layer.linear1, layer.linear2))
        layer.int8 = Int8FeedForward(linear1, linear2, dtype)
        del layer.linear1, layer.linear2
    return prepare_for_inference(net, dtype)


def _prepare_trunk(net: DeformableDetr, dtype: torch.dtype) -> None:
    """Prepare everything before the GroupNorms of the levels."""
    if by_triton(net.transformer.level_embed.device):
        _fuse_pyramid(net, dtype)
    fold_norms(net.backbone, dtype)
    net.backbone.to(dtype)
    for conv, _ in _projections(net):
        conv.to(dtype)
    net.input_proj.to(memory_format=torch.channels_last)
    net.dtype = dtype


@torch.no_grad()
def prepare_transformer(net: DeformableDetr, dtype: torch.dtype) -> None:
    """Prepare encoder and decoder, which are still as in checkpoints; heads stay as they are."""
    decoder = net.transformer.decoder
    attentions = [layer.cross_attn for layer in decoder.layers if isinstance(layer, DecoderLayer)]
    value_projs = _linears(attention.value_proj for attention in attentions)
    decoder.value_proj_of_all = FusedLinear(*value_projs, dtype=dtype)
    for attention in attentions:
        del attention.value_proj
    for module in list(net.transformer.modules()):
        if isinstance(module, MSDeformAttn):
            module.offset_bias = module.sampling_offsets.bias.detach().clone()
            module.sampling_offsets.bias.zero_()
            both = _linears((module.sampling_offsets, module.attention_weights))
            module.offsets_and_weights = FusedLinear(*both, dtype=dtype)
            del module.sampling_offsets, module.attention_weights
        for name in ("value_proj", "output_proj", "linear1", "linear2"):
            if isinstance(module, FUSED) and hasattr(module, name):
                linear = _linears([getattr(module, name)])
                setattr(module, name, FusedLinear(*linear, dtype=dtype))
    for part in (net.transformer.encoder, decoder):
        part.to(dtype)
    net.transformer_dtype, net.autocast_dtype, net.prepared = dtype, None, True
    if not net.config.two_stage:
        first = decoder.layers[0]
        assert isinstance(first, DecoderLayer)
        position, x = net.query_embed.weight.to(dtype)[None].chunk(2, dim=2)
        net.first_queries = first.attend_to_queries(x, position)


@torch.no_grad()
def prepare_detr(net: Detr, dtype: torch.dtype) -> Detr:
    """`prepare_for_inference` of DETR, in place and on its device.

    Batch norms, sums and ReLUs as there. Two linear layers compute what all decoder layers attend
    to, their keys and their values. The first self-attention of the queries is computed here.
    Everything but the heads is cast to `dtype`.
    """
    net.refuse_if_prepared()
    net.eval()
    encoder, decoder = net.transformer.encoder, net.transformer.decoder
    fold_norms(net.backbone, dtype)
    net.input_proj.to(dtype).to(memory_format=torch.channels_last)
    attentions = [
        projections(layer.multihead_attn)
        for layer in decoder.layers
        if isinstance(layer, DetrDecoderLayer)
    ]
    _, keys, values = zip(*attentions, strict=True)
    decoder.keys_of_all = FusedLinear(*map(_linear, keys), dtype=dtype)
    decoder.values_of_all = FusedLinear(*map(_linear, values), dtype=dtype)
    for layer in (*encoder.layers, *decoder.layers):
        assert isinstance(layer, DetrEncoderLayer | DetrDecoderLayer)
        layer.linear1, layer.linear2 = (
            FusedLinear(*_linears([linear]), dtype=dtype)
            for linear in (layer.linear1, layer.linear2)
        )
    for part in (encoder, decoder):
        part.to(dtype)
    for attention in list(net.transformer.modules()):
        if isinstance(attention, nn.MultiheadAttention):
            out_proj: Any = FusedLinear(attention.out_proj, dtype=dtype)
            attention.out_proj = out_proj
    net.dtype = net.transformer_dtype = dtype
    net.autocast_dtype, net.prepared = None, True
    first = decoder.layers[0]
    assert isinstance(first, DetrDecoderLayer)
    position = net.query_embed.weight.to(dtype)[None]
    net.first_queries = first.attend_to_queries(torch.zeros_like(position), position)
    return net.requires_grad_(False)


def _linear(projection: tuple[Tensor, Tensor]) -> nn.Linear:
    """The linear layer of a weight and a bias."""
    weight, bias = projection
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
    return linear


def _projections(net: DeformableDetr) -> Iterator[tuple[nn.Conv2d, nn.GroupNorm]]:
    """The convolution and the GroupNorm of each level."""
    for projection in net.input_proj:
        assert isinstance(projection, nn.Sequential)
        conv, norm = projection
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.GroupNorm)
        yield conv, norm


def fold_norms(trunk: nn.Module, dtype: torch.dtype) -> None:
    """Replace all convolutions and batch norms of a trunk by fused convolutions, in place."""
    for module in list(trunk.modules()):
        _fold_norms(module, dtype)


def _fold_norms(module: nn.Module, dtype: torch.dtype) -> None:
    """Fold each `bn` of a block into the `conv` with the same number, and fold its shortcut.

    The last convolution adds the shortcut, so it also has the shortcut's bias.
    """
    fused: FusedConv2d
    shortcut, shortcut_bias = getattr(module, "downsample", None), None
    if isinstance(shortcut, nn.Sequential):
        convolution, norm = shortcut
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, BatchNorm)
        _, shortcut_bias = folded(convolution, norm)
        module.downsample = fused = FusedConv2d(convolution, norm, dtype)
        fused.bias = None
    convolutions = {
        name: conv
        for name, conv in module.named_children()
        if isinstance(conv, nn.Conv2d)
        and isinstance(getattr(module, _norm_of(name), None), BatchNorm)
    }
    for name, conv in convolutions.items():
        norm = getattr(module, _norm_of(name))
        if is_stem(conv):
            fused = FusedStem(conv, norm, dtype)
        else:
            more = shortcut_bias if name == max(convolutions) else None
            fused = FusedConv2d(conv, norm, dtype, more)
        setattr(module, name, fused)
        setattr(module, _norm_of(name), nn.Identity())


def _norm_of(conv: str) -> str:
    """The name of the batch norm after a convolution."""
    return conv.replace("conv", "bn")


def _fuse_pyramid(net: DeformableDetr, dtype: torch.dtype) -> None:
    """Replace the projections of the pyramid, unless each of several follows from the one before.

    Where padding counts as published, they stay for batches with padding.
    """
    from model.fused_pyramid import FusedPyramid

    projections = list(_projections(net))
    if any(conv.kernel_size != (1, 1) for conv, _ in projections[:-1]):
        return
    net.fused_pyramid = FusedPyramid(projections, net.transformer.level_embed, dtype)
    if net.padding == "invariant":
        net.input_proj = nn.ModuleList()


def _linears(layers: Iterable[nn.Module]) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]
