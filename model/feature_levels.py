"""The pyramid of features that the encoder and the decoder attend to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.ops.sampling import padding_of

Shapes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class SeparablePositions:
    """Positions of cells, each the row of a table for its line beside that for its column."""

    table: Tensor  # (B, E, C / 2) fp32, E = sum of H + W over the levels
    entries: Tensor  # (S, 2) int32, the rows of the table for each cell's line and column


@dataclass(frozen=True)
class FeatureLevels:
    """The pyramid as one sequence, S = sum of H * W over L levels."""

    shapes: Shapes  # (height, width) of each level
    memory: Tensor  # (B, S, C)
    # Sine encoding plus level embedding: (B, S, C), or (1, S, C) without padding.
    position: Tensor | SeparablePositions
    placed: Tensor  # (B, S, C) memory + position
    centres: Tensor  # (B, S, 2) centre (x, y) of each cell, in units of its valid area, fp32
    valid_sizes: Tensor | None  # (B, L, 2) int64 valid height and width; None where all is valid
    valid_ratios: Tensor  # (B, L, 2) valid share of width and height, fp32

    @property
    def padding(self) -> Tensor | None:
        """(B, S) bool, True where padded; None where nothing is."""
        return None if self.valid_sizes is None else padding_of(self.valid_sizes, self.shapes)


def cell_centres(shapes: Shapes, valid_ratios: Tensor) -> Tensor:
    """`FeatureLevels.centres` of levels of these shapes."""
    centres = []
    for index, (height, width) in enumerate(shapes):
        ratio = valid_ratios[:, index]  # (B, 2)
        y = torch.arange(height, device=ratio.device, dtype=torch.float32) + 0.5
        x = torch.arange(width, device=ratio.device, dtype=torch.float32) + 0.5
        y = (y[None] / (ratio[:, 1:] * height))[:, :, None].expand(-1, -1, width)
        x = (x[None] / (ratio[:, :1] * width))[:, None].expand(-1, height, -1)
        centres.append(torch.stack((x, y), dim=-1).flatten(1, 2))
    return torch.cat(centres, 1)
