"""Convert pixels to the inputs of the network. (resize.py computes the size of an image.)"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from model.detector import BatchDetector
from model.ops import by_triton
from model.padding import valid_mask, zero_padding
from model.stem import blocks_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def batch_images(
    images: Sequence[Tensor], device: torch.device | str
) -> tuple[Tensor, Tensor | None]:
    """Pad images of different sizes to one batch, at the bottom and right, and normalise them.

    `images` are (h, w, 3) uint8 RGB. Returns `pixel_values` (B, 3, H, W) fp32, where H and W are
    the largest height and width, and `pixel_mask` (B, H, W) bool, which is None if all sizes are
    equal. Padding is zero after normalisation, as published.
    """
    pixels, valid = stack_images(images)
    return normalize(pixels.to(device), None if valid is None else valid.to(device))


def stack_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Stack images (h, w, 3) uint8 into one batch, padded with 0 at the bottom and right.

    Returns the batch (B, H, W, 3) uint8, and the height and width of each image (B, 2) int64, which
    is None if all sizes are equal.
    """
    shapes = [image.shape[:2] for image in images]
    alike = all(shape == shapes[0] for shape in shapes)
    pixels = torch.zeros(len(images), *map(max, zip(*shapes, strict=True)), 3, dtype=torch.uint8)
    for row, image in zip(pixels, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return pixels, None if alike else torch.tensor([list(shape) for shape in shapes])


def form_batch(images: Sequence[Tensor], detector: BatchDetector) -> tuple[Tensor, Tensor | None]:
    """Make the batch of a detector from images (h, w, 3) uint8 of one canvas.

    Returns the pixels (B, H, W, 3) uint8 and the valid sizes (B, 2) int64, as `submit` takes them.
    Pixels that are not valid are not written: they have any value.
    """
    if not detector.pads and detector.count == 1:
        return images[0][None], None
    (canvas,) = {detector.canvas((image.shape[0], image.shape[1])) for image in images}
    pixels = torch.empty(detector.count, *canvas, 3, dtype=torch.uint8, pin_memory=detector.pins)
    valid = torch.ones(detector.count, 2, dtype=torch.int64, pin_memory=detector.pins)
    for index, image in enumerate(images):
        height, width = image.shape[:2]
        pixels[index, :height, :width] = image
        valid[index, 0], valid[index, 1] = height, width
    pixels[len(images) :, 0, 0] = 0
    return pixels, valid if detector.pads else None


def normalize(
    pixels: Tensor, valid: Tensor | None, dtype: torch.dtype = torch.float32, blocks: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Convert the result of `stack_images`, on any device, to the inputs of the network.

    `pixels` (B, H, W, 3) uint8 become `pixel_values` (B, 3, H, W) of `dtype`, channels last in
    memory; with `blocks` they have the form of `model.stem.blocks_of`. `valid` (B, 2) int64 becomes
    `pixel_mask` (B, H, W) bool; None stays None.
    """
    mask = None if valid is None else valid_mask(valid, pixels.permute(0, 3, 1, 2))
    mean, std = _mean_and_std(pixels.device)
    if by_triton(pixels.device):
        from model.ops.pointwise import normalize_pixels
        from model.ops.trunk import normalize_blocks

        kernel = normalize_blocks if blocks else normalize_pixels
        return kernel(pixels, mean, std, valid, dtype), mask
    values = ((pixels.float() - mean) / std).permute(0, 3, 1, 2).to(dtype)
    values = zero_padding(values, valid)
    return blocks_of(values) if blocks else values, mask


@cache
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3,) fp32 of ImageNet's pixels, on the scale from 0 to 255.

    They are created once per device, because a copy would make the device wait.
    """
    with torch.inference_mode(False):
        mean, std = (torch.tensor(numbers) * 255 for numbers in (IMAGENET_MEAN, IMAGENET_STD))
        return mean.to(device), std.to(device)
