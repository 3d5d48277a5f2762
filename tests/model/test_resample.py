"""Images are enlarged to the bytes that torch writes, by numbers in numpy and by the kernel."""

import importlib.util
import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.resample import BITS, MOST_PIXELS, ONE, Taps, resize_pixels, taps, taps_of_batch
from tests.support.parameters import others_slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Size = tuple[int, int]


def draw_image(size: Size, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator)


def by_torch(image: Tensor, size: Size) -> Tensor:
    planes = image.permute(2, 0, 1)[None].contiguous()
    return F.interpolate(planes, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def weighed(image: Tensor, axis_taps: Taps) -> Tensor:
    """Apply taps to the rows of an image (h, w, 3) uint8: (H, w, 3)."""
    first, weight = (torch.from_numpy(column).long() for column in axis_taps.T)
    second = (first + 1).clamp(max=len(image) - 1)
    weight = weight[:, None, None]
    total = image[first].long() * (ONE - weight) + image[second].long() * weight
    return ((total + ONE // 2) >> BITS).byte()


def enlarged(image: Tensor, size: Size) -> Tensor:
    """The formula: rows first, rounded, then columns."""
    across = weighed(image.transpose(0, 1), taps(image.shape[1], size[1])).transpose(0, 1)
    return weighed(across, taps(image.shape[0], size[0]))


SIZES = [
    ((1, 1), (1, 1)),
    ((1, 1), (7, 13)),
    ((1, 50), (1, 50)),
    ((1, 50), (3, 51)),
    ((50, 1), (199, 1)),
    ((33, 47), (33, 47)),
    ((33, 47), (33, 94)),
    ((33, 47), (66, 47)),
    ((48, 64), (80, 107)),
    ((97, 89), (131, 101)),
    ((2, 3), (640, 960)),
    ((375, 500), (800, 1066)),
    ((480, 640), (800, 1066)),
]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_taps_give_the_bytes_of_torch(
    source: Size, target: Size, generator: torch.Generator
) -> None:
    image = draw_image(source, generator)
    expected = by_torch(image, target)
    assert torch.equal(enlarged(image, target), expected)
    assert torch.equal(resize_pixels(image, target), expected)


def test_taps_of_many_lengths_give_the_bytes_of_torch(generator: torch.Generator) -> None:
    """Of each pair an axis alone: all lengths up to 300, and lengths of models beside others."""
    draw = random.Random(0)
    pairs = [(source, draw.randint(source, 2 * source + 9)) for source in range(1, 300)]
    pairs += [(draw.randint(1, target), target) for target in [800, 1066, 1333, 4000] * 20]
    for source, target in pairs:
        image = draw_image((source, 3), generator)
        assert torch.equal(weighed(image, taps(source, target)), by_torch(image, (target, 3)))


def test_taps_stay_within_their_axis() -> None:
    for source, target in ((1, 9), (5, 5), (640, 1066), (1000, 1001), (3, MOST_PIXELS)):
        first, weight = taps(source, target).T
        assert first.min() >= 0 and (first + (weight > 0)).max() == source - 1
        assert weight.min() >= 0 and weight.max() < ONE and (np.diff(first) >= 0).all()


@pytest.mark.parametrize("lengths", [(9, 8), (0, 8), (9, MOST_PIXELS + 1)])
def test_other_lengths_are_refused(lengths: Size) -> None:
    with pytest.raises(ValueError, match=f"{lengths[0]} to {lengths[1]} pixels"):
        taps(*lengths)


BATCHES = [
    ((21, 64), [((13, 31), (21, 57)), ((21, 64), (21, 64)), ((1, 1), (1, 1))]),
    ((1, 1), [((1, 1), (1, 1))]),
    ((9, 700), [((9, 1), (9, 700)), ((1, 350), (7, 700)), ((5, 347), (9, 699))]),
]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(("canvas", "sizes"), others_slow(BATCHES))
@pytest.mark.parametrize("garbage", others_slow([255, 0]))
def test_the_kernel_gives_the_bytes_of_torch(
    canvas: Size, sizes: list[tuple[Size, Size]], garbage: int, generator: torch.Generator
) -> None:
    """Images beside others, beside a blank, and beside memory that nobody wrote."""
    from model.ops.resample import resample

    pixels = torch.full((len(sizes), *canvas, 3), garbage, dtype=torch.uint8)
    images = [draw_image(source, generator) for source, _ in sizes]
    for own, image in zip(pixels, images, strict=True):
        own[: image.shape[0], : image.shape[1]] = image
    sources, targets = (torch.tensor(ends) for ends in zip(*sizes, strict=True))
    table = taps_of_batch(sources, targets, canvas)
    found = resample(pixels.to(DEVICE), table.to(DEVICE), BITS).cpu()
    for own, image, (height, width) in zip(found, images, targets.tolist(), strict=True):
        assert torch.equal(own[:height, :width], by_torch(image, (height, width)))
