"""The contract of every detector: what it tells of itself, and the form of its batches.

A batch has few forms, so that a GPU records each of them once, and so that the arithmetic of an
image never depends on its neighbours:

- The canvas of an image is a function of the image's own resized size alone.
- A batch holds images of one canvas, each at the top left of it, and always the same number of
  them. Blanks take the places that are left: a blank is one valid pixel, which is 0.

A detector gives equal images of equal form equal bits, at whatever position, beside whatever
neighbours, in whatever order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.resize import ResizeRule

Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True)
class Detections:
    """The best detections of each image, best first."""

    # (B, N) fp32 in [0, 1]; all NaN for an image of whose output any number is not finite
    scores: Tensor
    labels: Tensor  # (B, N) int64, positions in the detector's `labels`
    boxes: Tensor  # (B, N, 4) fp32 x_min, y_min, x_max, y_max in pixels, within the image


class Pending(Protocol):
    """The result of a batch that a device may still be computing."""

    @property
    def device_seconds(self) -> float | None:
        """The time that the device computed, after `result`. None if it reports no time."""

    def result(self) -> Detections:
        """Wait for the detections of the whole batch, on the host. RuntimeError if that failed."""


class BatchDetector(Protocol):
    """A detector with its weights on its device."""

    @property
    def labels(self) -> Sequence[str]:
        """The class names by number; "" is a number that stands for no class."""

    @property
    def resize(self) -> ResizeRule:
        """The size to which an image must be resized."""

    @property
    def count(self) -> int:
        """The number of images in every batch, blanks included."""

    @property
    def top(self) -> int:
        """The greatest number of detections for an image."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def copies(self) -> torch.cuda.Stream | None:
        """The stream on which a GPU gets batches beside what it computes. None on CPUs."""

    @property
    def ahead(self) -> int:
        """The number of batches that may wait for their results while the next is submitted."""

    @property
    def pads(self) -> bool:
        """Whether an image may be smaller than its canvas."""

    @property
    def pins(self) -> bool:
        """Whether `submit` is faster from page-locked memory."""

    @property
    def enlarges(self) -> bool:
        """Whether `submit` takes `sources`. A detector that does also `pads`."""

    def canvas(self, size: Size) -> Size:
        """The canvas of an image of this resized size: at least as large, the same every time."""

    def submit(
        self, pixels: Tensor, valid: Tensor | None, sizes: Tensor, sources: Tensor | None = None
    ) -> Pending:
        """Start the detection in one batch of B = `count` images.

        Args:
            pixels: (B, H, W, 3) uint8 RGB on the host, or written on the device by the stream of
                `copies`, where H x W is the canvas of all images. Pixels that are
                not valid may have any value.
            valid: (B, 2) int64, height and width of each image on its canvas, at least 1 x 1. None
                if the detector never `pads`.
            sizes: (B, 2) int64, height and width of the image as displayed, in whose pixels its
                boxes shall be.
            sources: (B, 2) int64 on the host, height and width of each image in `pixels`, at most
                the valid ones, to which the detector enlarges it as `resize_pixels` does. None if
                they are the valid ones; always None for a detector that never `enlarges`.

        Of equal scores the detection of the lower query, then of the lower class, comes first.
        Raises RuntimeError or MemoryError if memory does not hold the batch, or the device fails.
        """

    def warm_up(self) -> bool:
        """Prepare for one more form that is likely to come; whether another is left.

        For use while there is nothing to detect, by the thread that submits. Raises as `submit`.
        """

    def give_memory_back(self) -> None:
        """Free the memory that only saves time. For use after memory ran out."""
