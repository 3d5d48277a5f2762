"""The pyramid of a prepared detector on a GPU: products, then one norm that places their results.

The 1x1 projections are products, each written where its level stands in the sequence. The bias, the
group norm, the positions and the centres of the cells follow in the kernels of ops/pyramid.py.
"""

from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.feature_levels import FeatureLevels, SeparablePositions
from model.ops.pyramid import (
    Shapes,
    entries_on,
    lines_on,
    norm_place,
    position_table,
)
from model.ops.triton import levels_on
from model.padding import strides_of, zero_padding
from model.position_encoding import frequencies

Projection = tuple[nn.Conv2d, nn.GroupNorm]  # of one level


class FusedPyramid(nn.Module):
    """The projections of the levels, from features of a `dtype`. What is added to them is fp32.

    The last projection may be a 3x3 one, of the last features. The others are 1x1.
    """

    def __init__(self, projections: Sequence[Projection], level_embed: Tensor, dtype: torch.dtype):
        super().__init__()
        convolutions, norms = zip(*projections, strict=True)
        self.weights = nn.ParameterList(_weight(conv, dtype) for conv in convolutions)
        self.bias = _stacked(conv.bias for conv in convolutions)
        self.scale = _stacked(norm.weight for norm in norms)
        self.shift = _stacked(norm.bias for norm in norms)
        self.groups, self.eps = norms[0].num_groups, norms[0].eps
        self.level_embed = level_embed.detach().float()

    def forward(
        self,
        features: Sequence[Tensor],
        size: tuple[int, int],
        valid: Tensor | None,
        dtype: torch.dtype,
    ) -> FeatureLevels:
        """The levels of `features`, maps (B, C, H, W) whose channels are last in memory.

        Its memory has the `dtype`.

        `size` is the height and width of the canvas, `valid` (B, 2) int64 those of each image; None
        if nothing is padded.
        """
        shapes: Shapes = tuple((f.shape[2], f.shape[3]) for f in features)
        if len(shapes) < len(self.weights):
            shapes += (((shapes[-1][0] + 1) // 2, (shapes[-1][1] + 1) // 2),)
        device, batch = features[0].device, len(features[0])
        levels = levels_on(device, shapes)
        extents = levels[:, :2].long()
        if valid is None:
            areas = extents.expand(batch, -1, -1).contiguous()
        else:
            strides = strides_on(device, size, shapes)
            areas = (valid[:, None] - 1) // strides + 1
        table = position_table(
            lines_on(device, shapes),
            frequencies_on(device, self.level_embed.shape[1] // 2),
            self.level_embed,
            areas,
        )
        entries = entries_on(device, shapes)
        memory, placed, centres = norm_place(
            self._products(features, shapes, areas),
            self.bias,
            self.scale,
            self.shift,
            self.groups,
            self.eps,
            levels,
            max(height * width for height, width in shapes),
            areas,
            table,
            entries,
            dtype,
        )
        return FeatureLevels(
            shapes=shapes,
            memory=memory,
            position=SeparablePositions(table, entries),
            placed=placed,
            centres=centres,
            valid_sizes=None if valid is None else areas,
            valid_ratios=(areas / extents).flip(-1),
        )

    def _products(self, features: Sequence[Tensor], shapes: Shapes, areas: Tensor) -> Tensor:
        """The projections without their bias, as one sequence (B, S, C)."""
        cells = [height * width for height, width in shapes]
        width = self.bias.shape[1]
        products = features[0].new_empty(len(features[0]), sum(cells), width)
        parts = products.split(cells, dim=1)
        for x, weight, part in zip(features, self.weights, parts, strict=False):
            rows = x.permute(0, 2, 3, 1).flatten(1, 2)
            torch.bmm(rows, weight.expand(len(rows), -1, -1), out=part)
        if len(features) < len(parts):
            last = len(features) - 1
            x = zero_padding(features[last], areas[:, last])
            convolved = F.conv2d(x, self.weights[-1], None, stride=2, padding=1)
            parts[-1].copy_(convolved.permute(0, 2, 3, 1).flatten(1, 2))
        return products


def _weight(conv: nn.Conv2d, dtype: torch.dtype) -> nn.Parameter:
    """The weight of a 1x1 convolution as (1, C, D), that of another one with channels last."""
    weight = conv.weight.detach().to(dtype)
    if conv.kernel_size == (1, 1):
        weight = weight[:, :, 0, 0].t().contiguous()[None]
    else:
        weight = weight.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(weight, requires_grad=False)


def _stacked(parameters: Iterable[Tensor | None]) -> Tensor:
    """One parameter of each level as (L, C) fp32."""
    return torch.stack([p.detach().float() for p in parameters if p is not None])


@cache
def strides_on(device: torch.device, size: tuple[int, int], shapes: Shapes) -> Tensor:
    """(L, 2) int64 on the device, vertical and horizontal: see `strides_of`."""
    return torch.tensor([[stride, stride] for stride in strides_of(size, shapes)], device=device)


@cache
def frequencies_on(device: torch.device, half: int) -> Tensor:
    """`frequencies` on the device."""
    return frequencies(half).to(device)
