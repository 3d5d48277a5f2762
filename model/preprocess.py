"""Pixels to what the network takes. (How large a picture should be: resize.py.)"""

from collections.abc import Sequence

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def batch_images(
    images: Sequence[Tensor], device: torch.device | str
) -> tuple[Tensor, Tensor | None]:
    """Pad pictures of unlike sizes to one batch, at the bottom and right, and normalise them.

    `images` are (h, w, 3) uint8 RGB -> `pixel_values` (B, 3, H, W) fp32 with H, W the largest
    height and width, and `pixel_mask` (B, H, W) bool, None where all sizes are equal. Padding is
    zero after normalisation, as published.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=device) * 255
    std = torch.tensor(IMAGENET_STD, device=device) * 255
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    values = torch.zeros(len(images), 3, height, width, device=device)
    mask = torch.zeros(len(images), height, width, device=device, dtype=torch.bool)
    for index, image in enumerate(images):
        h, w = image.shape[:2]
        normal = (image.to(device).float() - mean) / std
        values[index, :, :h, :w] = normal.permute(2, 0, 1)
        mask[index, :h, :w] = True
    alike = all(image.shape == images[0].shape for image in images)
    return values, None if alike else mask
