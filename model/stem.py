"""The first convolution of ResNet-50, 7x7 of stride 2, as one of 4x4 over blocks of pixels.

Libraries pad three channels to eight, and so compute 7 * 7 * 8 products for each number. A block
has the 2x2 pixels of one place of the result in 16 channels, of which 12 are used. Row 2i - 3 + u
of the image, u = 0 to 6, is row (u + 1) % 2 of block i - 2 + (u + 1) // 2. So the seven rows of a
filter, after one row of zeros, are four rows of blocks. The products are the same.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.fused_convolution import BatchNorm, FusedConv2d
from model.ops import capability_of
from model.ops.ways import BLOCKS, STEM, way_of


def _blocks(x: Tensor) -> Tensor:
    """(N, 3, 2 * H, 2 * W) -> (N, 16, H, W), channels last: 4 pixels of each colour, then zeros."""
    blocks = F.pad(F.pixel_unshuffle(x, 2), (0, 0, 0, 0, 0, 4))
    return blocks.contiguous(memory_format=torch.channels_last)


def blocks_of(x: Tensor) -> Tensor:
    """Blocks of images (B, 3, H, W): (B, 16, (H + 1) // 2 + 3, (W + 1) // 2 + 3), channels last.

    The border of zeros, two blocks at the top and left and one at the bottom and right, is the
    padding of the convolution. On GPUs `model.ops.trunk.normalize_blocks` makes them from pixels.
    """
    height, width = x.shape[2:]
    return _blocks(F.pad(x, (4, 2 + width % 2, 4, 2 + height % 2)))


def canvas_of(x: Tensor) -> tuple[int, int]:
    """Height and width of images (B, 3, H, W); of their blocks, these rounded up to even numbers.

    Both are as large after any number of halvings that round up.
    """
    height, width = x.shape[2:]
    return (height, width) if x.shape[1] == 3 else (2 * (height - 3), 2 * (width - 3))


def is_stem(conv: nn.Conv2d) -> bool:
    """Whether a convolution can be computed over blocks."""
    geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return conv.in_channels == 3 and geometry == ((7, 7), (2, 2), (3, 3), (1, 1))


class FusedStem(FusedConv2d):
    """The first convolution, over blocks if `blocks` (None: where the GPU is faster that way)."""

    def __init__(
        self, conv: nn.Conv2d, norm: BatchNorm, dtype: torch.dtype, blocks: bool | None = None
    ):
        assert is_stem(conv)
        super().__init__(conv, norm, dtype)
        if blocks is None:
            capability = capability_of(self.weight.device)
            blocks = self.triton and way_of(STEM, capability) == BLOCKS
        self.blocks = False  # whether the input has the form of `blocks_of`
        if blocks:
            self.use_blocks()

    def use_blocks(self) -> None:
        """Rearrange the weight once: (D, 3, 7, 7) -> (D, 16, 4, 4)."""
        self.weight = _blocks(F.pad(self.weight, (1, 0, 1, 0)))
        self.geometry = ((0, 0), (1, 1), (1, 1), 1)
        self.blocks = True

    def relu_pool(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """As of `FusedConv2d`; `x` is (B, 3, H, W), or its blocks where `blocks` is true."""
        return super().relu_pool(blocks_of(x) if self.blocks and x.shape[1] == 3 else x, valid)
