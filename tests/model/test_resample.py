"""Images are resized to the bytes that torch writes, by numbers in numpy and by the kernels."""

import importlib.util
import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.preprocess import resize_on_device
from model.resample import (
    BITS,
    MOST_PIXELS,
    ONE,
    Axis,
    Taps,
    axis,
    resize_pixels,
    taps,
    taps_of_batch,
)
from tests.support.parameters import others_slow, slow_but

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


def weighed_by(image: Tensor, own: Axis) -> Tensor:
    """Apply an axis to the rows of an image (h, w, 3) uint8: (H, w, 3)."""
    total = torch.full((len(own.first), *image.shape[1:]), 1 << (own.bits - 1), dtype=torch.int64)
    for number, weights in enumerate(own.weights.T):
        rows = torch.from_numpy(own.first + number).long().clamp(max=len(image) - 1)
        total += image[rows].long() * torch.from_numpy(weights).long()[:, None, None]
    return (total >> own.bits).clamp(max=255).byte()


def random_pairs(count: int, seed: int) -> list[tuple[int, int]]:
    """Lengths of an axis that is shrunk by 1.01 to 12, or enlarged by up to 3."""
    draw = random.Random(seed)
    pairs = []
    for number in range(count):
        target = draw.randint(1, 400)
        scale = draw.uniform(1 / 3, 1) if number % 4 == 0 else draw.uniform(1.01, 12)
        pairs.append((max(1, round(target * scale)), target))
    return pairs


LENGTHS = [(1, 1), (5, 1), (640, 639), (1001, 100), (16384, 1066), (20000, 800), (12, 12)]


def test_axes_of_any_scale_give_the_bytes_of_torch(generator: torch.Generator) -> None:
    for source, target in LENGTHS + random_pairs(200, seed=1):
        image = draw_image((source, 2), generator)
        image[: source // 2] |= 0xF0  # light, so that sums reach the largest byte
        assert torch.equal(weighed_by(image, axis(source, target)), by_torch(image, (target, 2)))


def test_weights_are_as_wide_as_those_of_torch() -> None:
    """They are whole numbers of 15 bits, whose unit is finer the smaller the largest is."""
    assert [axis(*pair).bits for pair in ((9, 9), (9, 12), (91, 90), (500, 125))] == [
        14,
        14,
        15,
        16,
    ]
    for pair in LENGTHS + random_pairs(50, seed=2):
        assert 1 << 14 <= axis(*pair).weights.max() + 1 <= 1 << 15


# Of the first number of rows and columns the second is made.
IMAGES = [
    ((1, 1), (1, 1)),
    ((31, 5), (3, 7)),
    ((3, 70), (4, 33)),
    ((9, 700), (3, 301)),
    ((30, 31), (29, 30)),
]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(("source", "target"), slow_but(IMAGES[1:3], IMAGES))
def test_the_kernel_of_any_scale_gives_the_bytes_of_torch(
    source: Size, target: Size, generator: torch.Generator
) -> None:
    image = draw_image(source, generator)
    found = resize_on_device(image.to(DEVICE), target).cpu()
    assert torch.equal(found, by_torch(image, target))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_takes_planes_and_turned_images(generator: torch.Generator) -> None:
    planes = torch.randint(0, 256, (3, 9, 12), dtype=torch.uint8, generator=generator)
    turned = planes.permute(2, 1, 0)  # (12, 9, 3)
    found = resize_on_device(turned.to(DEVICE), (4, 11)).cpu()
    assert torch.equal(found, by_torch(turned, (4, 11)))
    gray = planes[:1].expand(3, -1, -1).permute(1, 2, 0)
    assert torch.equal(resize_on_device(gray.to(DEVICE), (2, 9)).cpu(), by_torch(gray, (2, 9)))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_gives_the_bytes_of_torch_at_random_sizes(
    generator: torch.Generator, seed: int
) -> None:
    draw = random.Random(seed)
    for _ in range(6):
        target = draw.randint(1, 6), draw.randint(1, 300)
        source = tuple(
            max(1, round(side * draw.choice([draw.uniform(1.01, 12), draw.uniform(0.3, 1)])))
            for side in target
        )
        image = draw_image((source[0], source[1]), generator)
        found = resize_on_device(image.to(DEVICE), target).cpu()
        assert torch.equal(found, by_torch(image, target)), (source, target)
