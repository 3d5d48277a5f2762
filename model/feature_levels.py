"""The pyramid of features that the encoder and the decoder attend to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.ops.sampling import padding_of


@dataclass(frozen=True)
class FeatureLevels:
    """The pyramid as one sequence, S = sum of H * W over L levels."""

    shapes: Sequence[tuple[int, int]]  # (height, width) of each level
    memory: Tensor  # (B, S, C)
    position: Tensor  # (B, S, C) sine encoding plus level embedding; (1, S, C) without padding
    valid_sizes: Tensor | None  # (B, L, 2) int64 valid height and width; None where all is valid
    valid_ratios: Tensor  # (B, L, 2) valid share of width and height, fp32

    @property
    def padding(self) -> Tensor | None:
        """(B, S) bool, True where padded; None where nothing is."""
        return None if self.valid_sizes is None else padding_of(self.valid_sizes, self.shapes)


def cell_centres(levels: FeatureLevels) -> list[Tensor]:
    """Centre (x, y) of each cell of each level, in units of its valid area: (B, H * W, 2), fp32."""
    centres = []
    for index, (height, width) in enumerate(levels.shapes):
        ratio = levels.valid_ratios[:, index]  # (B, 2)
        y = torch.arange(height, device=ratio.device, dtype=torch.float32) + 0.5
        x = torch.arange(width, device=ratio.device, dtype=torch.float32) + 0.5
        y = (y[None] / (ratio[:, 1:] * height))[:, :, None].expand(-1, -1, width)
        x = (x[None] / (ratio[:, :1] * width))[:, None].expand(-1, height, -1)
        centres.append(torch.stack((x, y), dim=-1).flatten(1, 2))
    return centres
