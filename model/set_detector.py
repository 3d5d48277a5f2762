"""What DETR and Deformable DETR share: a trunk, a transformer, and queries that find objects."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from model.backbone import Backbone
from model.class_loss import ClassLoss
from model.config import SetConfig
from model.detector import Detections
from model.predictions import DetectorOutput
from model.preprocess import normalize
from model.resize import ResizeRule
from model.stem import FusedStem

POSITIONS_KEPT = 8  # shapes; the multi-scale model has 9 MB in bf16 for one of 800 x 1066
Padding = Literal["published", "invariant"]


class SetDetector(nn.Module, ABC):
    """A detector whose queries find an object each, as in checkpoints or prepared for inference.

    `padding="published"` computes what the original does, where the padding of a batch changes the
    result a little; `"invariant"` gives a padded image what it gives alone.
    """

    config: SetConfig
    backbone: nn.ModuleList  # of the trunk alone
    class_loss: ClassVar[ClassLoss]  # for training

    def __init__(self, padding: Padding = "published"):
        super().__init__()
        self.padding = padding
        self.autocast_dtype: torch.dtype | None = None
        self.has_new_heads = False  # for other classes than those of the weights, see create_model
        self.prepared = False  # for inference, which sets the next ones as well
        self.dtype = torch.float32  # of the trunk
        self.transformer_dtype = torch.float32  # of encoder and decoder; the rest is fp32
        # Returns the detector for images in which this one overflows (fallback.py).
        self.fallback: Callable[[], SetDetector] | None = None
        self._positions: dict[Hashable, Tensor] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names by number; "" is a number that stands for no class."""
        return self.config.labels

    @property
    def resize(self) -> ResizeRule:
        """The size to which an image must be resized."""
        return self.config.resize

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> DetectorOutput:
        """Detect in a batch.

        Args:
            pixel_values: (B, 3, H, W), normalised, padded with zeros at the bottom and right;
                or their blocks, see `model.stem.blocks_of`, if `takes_blocks`.
            pixel_mask: (B, H, W), true where there is an image; None where there is no padding.
            valid: (B, 2) int64, in place of the mask: the height and width of each image.

        Returns:
            `pred_logits` (B, Q, K) and `pred_boxes` (B, Q, 4), (cx, cy, w, h) relative to each
            image's valid area, both fp32.
        """
        if pixel_mask is not None:  # to look into it would make a GPU wait
            valid = torch.stack((pixel_mask[:, :, 0].sum(1), pixel_mask[:, 0].sum(1)), dim=1)
        return self.predict(pixel_values, valid)

    @abstractmethod
    def predict(self, pixel_values: Tensor, valid: Tensor | None) -> DetectorOutput:
        """As `forward`; `valid` is None where there is no padding."""

    @abstractmethod
    def choose(self, output: DetectorOutput, sizes: Tensor, top: int) -> Detections:
        """The `top` best detections; `sizes` (B, 2) are as in `detect`."""

    @abstractmethod
    def replace_heads(self, labels: tuple[str, ...]) -> None:
        """Other classes: class heads start anew, boxes keep what they know."""

    @property
    def takes_blocks(self) -> bool:
        """Whether `pixel_values` may be blocks, with which the first convolution is faster."""
        (trunk,) = self.backbone
        assert isinstance(trunk, Backbone)
        stem = trunk.body.conv1
        return isinstance(stem, FusedStem) and stem.blocks and self.padding == "invariant"

    def detect(self, pixels: Tensor, valid: Tensor | None, sizes: Tensor, top: int) -> Detections:
        """Detect in a batch of pixels on the device of the weights.

        Args:
            pixels: (B, H, W, 3) uint8 RGB; what is not valid may have any value.
            valid: (B, 2) int64 height and width of each image; None where all is valid.
            sizes: (B, 2) int64 height and width of the images in whose pixels boxes shall be.
            top: the greatest number of detections for an image.
        """
        values = normalize(pixels, valid, self.dtype, self.takes_blocks)
        return self.choose(self(values, valid=valid), sizes, top)

    def refuse_if_prepared(self) -> None:
        """ValueError for a net that has lost what training and checkpoints need."""
        if self.prepared:
            raise ValueError(
                "this model is prepared for inference, on its device: to train, save or move it, "
                "create it with training=True"
            )

    def train(self, mode: bool = True) -> Self:
        if mode:
            self.refuse_if_prepared()
        return super().train(mode)

    def _apply(self, *arguments: Any, **options: Any) -> Self:
        self.refuse_if_prepared()  # its fused weights would stay behind
        return super()._apply(*arguments, **options)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision of training: parameters stay fp32. (For inference they are cast once.)"""
        dtype = self.autocast_dtype
        return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def _kept_position(self, shape: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Positions of cells, which depend on the shape alone, kept for the next image."""
        if shape not in self._positions:
            made = make()
            if len(self._positions) == POSITIONS_KEPT:
                self._positions.pop(next(iter(self._positions)))
            self._positions[shape] = made
        return self._positions[shape]

    def kept_positions(self) -> tuple[Tensor, ...]:
        """The positions kept now, for those who hold on to the memory by its address."""
        return tuple(self._positions.values())
