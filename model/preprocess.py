"""Convert pixels to the inputs of the network. (resize.py computes the size of an image.)"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from model.detector import BatchDetector, Size
from model.jpeg import Jpeg, decode
from model.ops import by_triton
from model.padding import valid_mask, zero_padding
from model.resample import BITS, axis, resize_pixels, taps_of_batch
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
    valid = None if valid is None else valid.to(device)
    values = normalize(pixels.to(device), valid)
    return values, None if valid is None else valid_mask(valid, values)


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


def form_batch(
    images: Sequence[Tensor | Jpeg],
    detector: BatchDetector,
    targets: Sequence[Size] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Make the batch of a detector from images that become `targets` of one canvas.

    Images are (h, w, 3) uint8, at most as large as their targets (None: just as large), or JPEGs,
    which the device of the detector decodes. Returns the pixels (B, H, W, 3) uint8, the valid sizes
    (B, 2) int64 and the sources (B, 2) int64, as `submit` takes them. Pixels that are in no image
    are not written: they have any value. Raises Refused if a JPEG is not decoded.
    """
    if targets is None:
        targets = [
            image.displayed if isinstance(image, Jpeg) else (image.shape[0], image.shape[1])
            for image in images
        ]
    with torch.cuda.stream(detector.copies):
        pixels = [_decoded(*pair, detector) for pair in zip(images, targets, strict=True)]
        return _form_batch(pixels, detector, targets)


def _decoded(image: Tensor | Jpeg, target: Size, detector: BatchDetector) -> Tensor:
    """The pixels of an image, as large as its file or, on a GPU, at most as large as `target`."""
    if not isinstance(image, Jpeg):
        return image
    pixels = decode(image, detector.device)
    if not detector.enlarges:
        return pixels.cpu().contiguous()
    fits = pixels.shape[0] <= target[0] and pixels.shape[1] <= target[1]
    return pixels if fits else resize_on_device(pixels, target)


def _form_batch(
    images: Sequence[Tensor], detector: BatchDetector, targets: Sequence[Size]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if not detector.enlarges:
        images = [resize_pixels(*pair) for pair in zip(images, targets, strict=True)]
    if not detector.pads and detector.count == 1:
        return images[0][None], None, None
    (canvas,) = {detector.canvas(target) for target in targets}
    device = next((image.device for image in images if image.is_cuda), torch.device("cpu"))
    pinned = detector.pins and device.type == "cpu"
    pixels = torch.empty(
        detector.count, *canvas, 3, dtype=torch.uint8, device=device, pin_memory=pinned
    )
    valid = torch.ones(detector.count, 2, dtype=torch.int64, pin_memory=detector.pins)
    valid[: len(images)] = torch.tensor(targets)
    sources = valid.clone()
    for index, image in enumerate(images):
        height, width = image.shape[:2]
        pixels[index, :height, :width] = image
        sources[index, 0], sources[index, 1] = height, width
    pixels[len(images) :, 0, 0] = 0
    enlarged = None if torch.equal(sources, valid) else sources
    return pixels, valid if detector.pads else None, enlarged


def enlarge(pixels: Tensor, valid: Tensor, sources: Tensor) -> Tensor:
    """Enlarge the images of a batch on a GPU, of which `form_batch` made the arguments.

    `pixels` (B, H, W, 3) uint8 are on the GPU, the sizes on the host. Returns pixels alike. The GPU
    does not wait for the host.
    """
    from model.ops.resample import resample

    table = _moved(taps_of_batch(sources, valid, pixels.shape[1:3]), pixels.device)
    return resample(pixels, table, BITS)


def resize_on_device(image: Tensor, size: Size) -> Tensor:
    """Resize an image (h, w, 3) uint8 on a GPU as `resize_pixels` does: (H, W, 3) uint8."""
    from model.ops.resample import resize

    own = [axis(*lengths) for lengths in zip(image.shape[:2], size, strict=True)]
    rows, columns = (_moved(one.table(), image.device) for one in own)
    return resize(image, rows, columns, (own[0].bits, own[1].bits))


def _moved(table: Tensor, device: torch.device) -> Tensor:
    """A table of the host on a device, which does not wait for the host."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def normalize(
    pixels: Tensor, valid: Tensor | None, dtype: torch.dtype = torch.float32, blocks: bool = False
) -> Tensor:
    """Convert the pixels of `stack_images`, on any device, to the inputs of the network.

    `pixels` (B, H, W, 3) uint8 become (B, 3, H, W) of `dtype`, channels last in memory, which is 0
    beyond the `valid` (B, 2) int64 height and width of each image. With `blocks` they have the form
    of `model.stem.blocks_of`.
    """
    mean, std = _mean_and_std(pixels.device)
    if by_triton(pixels.device):
        from model.ops.pointwise import normalize_pixels
        from model.ops.trunk import normalize_blocks

        kernel = normalize_blocks if blocks else normalize_pixels
        return kernel(pixels, mean, std, valid, dtype)
    values = ((pixels.float() - mean) / std).permute(0, 3, 1, 2).to(dtype)
    values = zero_padding(values, valid)
    return blocks_of(values) if blocks else values


@cache
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3,) fp32 of ImageNet's pixels, on the scale from 0 to 255.

    They are created once per device, because a copy would make the device wait.
    """
    with torch.inference_mode(False):
        mean, std = (torch.tensor(numbers) * 255 for numbers in (IMAGENET_MEAN, IMAGENET_STD))
        return mean.to(device), std.to(device)
