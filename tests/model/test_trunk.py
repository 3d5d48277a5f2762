"""The prepared trunk, as GPUs compute it, equals the trunk as published, in fp64 and alone."""

import copy
import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from model.backbone import Backbone, ResNet50
from model.batch_norm import FrozenBatchNorm2d
from model.fused_convolution import BatchNorm, FusedConv2d
from model.inference import fold_norms
from model.ops.trunk import normalize_blocks, zero_padding_
from model.padding import halve, zero_padding
from model.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize
from model.stem import FusedStem, blocks_of, canvas_of
from model.zoo import create_deformable_detr
from tests.support.gpu_paths import take_paths_of_gpus
from tests.support.parameters import others_slow

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(37, 30), (34, 45), (1, 1)]  # on a canvas of 37 x 45
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def as_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fused layers take the code path of GPUs."""
    if DEVICE == "cpu":
        take_paths_of_gpus(monkeypatch)


def create_trunk(
    kind: str, dilation: bool, generator: torch.Generator, most_blocks: int = 2
) -> Backbone:
    """Create a trunk with random norms, in evaluation mode, with so many blocks of each stage."""
    trunk = Backbone(kind, dilation).eval().requires_grad_(False)
    if isinstance(trunk.body, ResNet50):
        for name in ("layer1", "layer2", "layer3", "layer4"):
            setattr(trunk.body, name, getattr(trunk.body, name)[:most_blocks])
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.weight[0].numel()
            module.weight.normal_(std=fan**-0.5, generator=generator)
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            randomise(module, generator)
    return trunk


def randomise(norm: BatchNorm, generator: torch.Generator) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    for numbers in (norm.weight, norm.running_var):
        numbers.data.uniform_(0.5, 1.5, generator=generator)
    for numbers in (norm.bias, norm.running_mean):
        numbers.data.normal_(std=0.3, generator=generator)


def use_libraries(trunk: nn.Module) -> None:
    """Let cuDNN, cuBLAS and blocks do whatever they can."""
    for module in trunk.modules():
        if isinstance(module, FusedConv2d):
            module.residual_by_cudnn = module.bias_by_cudnn = True
            module.by_product = module.is_product
        if isinstance(module, FusedStem):
            module.use_blocks()


def use_kernels(trunk: nn.Module) -> None:
    """Let our own kernels do whatever they can."""
    for module in trunk.modules():
        if isinstance(module, FusedConv2d):
            module.residual_by_cudnn = module.bias_by_cudnn = module.by_product = False


def draw_pixels(generator: torch.Generator, sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Draw pixels (B, H, W, 3) uint8 of a canvas, and their valid sizes."""
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    shape = (len(sizes), height, width, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8), torch.tensor(sizes)


def exact_normal(pixels: Tensor) -> Tensor:
    """Normalise (B, H, W, 3) as `normalize`, in fp64: (B, 3, H, W)."""
    mean, deviation = (255 * torch.tensor(n).double() for n in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels.double() - mean) / deviation).permute(0, 3, 1, 2)


def largest_error(found: Tensor, expected: Tensor) -> float:
    """The largest error, as a share of the largest number; NaN if one is NaN."""
    return float((found.double().cpu() - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize(
    ("dtype", "most"), others_slow([(torch.float16, 1e-2), (torch.float32, 1e-5)])
)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("use", [use_kernels, use_libraries])
@pytest.mark.parametrize(
    ("kind", "dilation", "most_blocks"),
    [
        pytest.param("resnet50", True, 2, marks=pytest.mark.slow),
        pytest.param("resnet50", False, 2, marks=pytest.mark.slow),
        ("compact", False, 2),
        pytest.param("resnet50", False, 6, marks=pytest.mark.slow),
    ],
)
def test_trunk_equals_the_published_one_for_each_image_alone(
    kind: str,
    dilation: bool,
    most_blocks: int,
    use: Callable[[nn.Module], None],
    padded: bool,
    dtype: torch.dtype,
    most: float,
    generator: torch.Generator,
    as_on_gpus: None,
) -> None:
    trunk = create_trunk(kind, dilation, generator, most_blocks)
    exact = copy.deepcopy(trunk).double()
    pixels, valid = draw_pixels(generator, SIZES if padded else SIZES[:1])
    trunk = trunk.to(DEVICE)
    fold_norms(trunk, dtype)
    use(trunk)
    blocks = isinstance(trunk.body.conv1, FusedStem) and trunk.body.conv1.blocks
    area = valid.to(DEVICE) if padded else None
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        values = normalize(pixels.to(DEVICE), area, dtype, blocks)
        features = trunk(values, area)
    for index, (height, width) in enumerate(valid.tolist()):
        alone = exact(exact_normal(pixels[index : index + 1, :height, :width]))
        for level, (found, expected) in enumerate(zip(features, alone, strict=True)):
            rows, columns = expected.shape[2:]
            own = found[index : index + 1, :, :rows, :columns]
            assert largest_error(own, expected) < most, (index, level)


@torch.inference_mode()
@pytest.mark.parametrize("use", others_slow([use_kernels, use_libraries]))
@pytest.mark.parametrize("kind", others_slow(["compact", "resnet50"]))
def test_neighbours_do_not_change_an_image(
    kind: str,
    use: Callable[[nn.Module], None],
    generator: torch.Generator,
    as_on_gpus: None,
) -> None:
    trunk = create_trunk(kind, False, generator).to(DEVICE)
    fold_norms(trunk, torch.float32)
    use(trunk)
    pixels, valid = draw_pixels(generator, SIZES)
    values = normalize(pixels.to(DEVICE), valid.to(DEVICE))
    expected = trunk(values, valid.to(DEVICE))
    for fill in (torch.nan, torch.inf):
        values[1:] = fill
        for found, alone in zip(trunk(values, valid.to(DEVICE)), expected, strict=True):
            assert torch.equal(found[0], alone[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 64, 17, 9), (1, 48, 1, 1), (3, 512, 2, 21), (2, 1, 5, 1)])
def test_zero_padding(
    dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator
) -> None:
    """NaN in the padding goes, and NaN elsewhere stays."""
    x = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    sides = [torch.randint(1, side + 1, (shape[0],), generator=generator) for side in shape[2:]]
    valid = torch.stack(sides, dim=1).to(DEVICE)
    inside = zero_padding(torch.ones_like(x), valid).bool()
    x[~inside] = torch.nan
    x[:, :, 0, 0] = torch.nan
    expected = torch.where(inside, x, 0.0)
    zero_padding_(x, valid)
    assert torch.equal(x.isnan(), expected.isnan())
    assert torch.equal(x.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(17, 9), (32, 40), (1, 2), (1, 1), (45, 61)])
def test_blocks_of_pixels_are_the_blocks_of_their_numbers(
    dtype: torch.dtype, padded: bool, size: tuple[int, int], generator: torch.Generator
) -> None:
    sizes = [size, ((size[0] + 1) // 2, size[1]), (1, 1)]
    pixels, valid = draw_pixels(generator, sizes)
    expected = blocks_of(zero_padding(exact_normal(pixels), valid if padded else None))
    pixels, valid = pixels.to(DEVICE), valid.to(DEVICE)
    mean, deviation = (
        255 * torch.tensor(numbers, device=DEVICE) for numbers in (IMAGENET_MEAN, IMAGENET_STD)
    )
    found = normalize_blocks(pixels, mean, deviation, valid if padded else None, dtype)
    assert found.shape == (3, 16, (size[0] + 1) // 2 + 3, (size[1] + 1) // 2 + 3)
    assert found.is_contiguous(memory_format=torch.channels_last)
    # Triton's interpreter truncates to bf16, but GPUs round.
    tolerance = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double().cpu(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(found == 0, expected.to(DEVICE) == 0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("size", [(17, 9), (32, 40), (31, 40), (1, 2), (2, 1), (1, 1)])
def test_stem_over_blocks_is_the_stem(
    padded: bool, size: tuple[int, int], generator: torch.Generator
) -> None:
    """In fp64, on the CPU: the same products in another order."""
    conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False).requires_grad_(False)
    norm = FrozenBatchNorm2d(64)
    randomise(norm, generator)
    x = torch.randn(3, 3, *size, generator=generator).double()
    valid = torch.tensor([size, [(side + 1) // 2 for side in size], [1, 1]]) if padded else None
    x = zero_padding(x, valid)
    plain = copy.deepcopy(conv).double()
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    y = F.conv2d(x, plain.weight, None, 2, 3) * scale[:, None, None] + shift[:, None, None]
    expected = F.max_pool2d(zero_padding(y.relu(), halve(valid)), 3, 2, 1)
    stem = FusedStem(conv.double(), norm.double(), torch.float64)
    stem.use_blocks()
    torch.testing.assert_close(stem.relu_pool(x, halve(valid)), expected, rtol=1e-12, atol=1e-12)
    assert stem.weight.shape == (64, 16, 4, 4)


@pytest.mark.parametrize("size", [(17, 9), (32, 40), (31, 40), (1, 2), (1, 1)])
def test_canvas_of_blocks_has_the_levels_of_the_images(size: tuple[int, int]) -> None:
    image = torch.empty(1, 3, *size)
    found = canvas_of(blocks_of(image))
    assert canvas_of(image) == size
    for one, other in zip(found, size, strict=True):
        for _ in range(6):
            one, other = (one + 1) // 2, (other + 1) // 2
            assert one == other


@torch.inference_mode()
@pytest.mark.parametrize("padded", others_slow([False, True]))
def test_the_pyramid_of_blocks_is_that_of_images(
    padded: bool, generator: torch.Generator, as_on_gpus: None
) -> None:
    net = create_deformable_detr(
        "deformable-detr-single-scale", "random", DEVICE, "fp32", "invariant"
    )
    pixels, valid = draw_pixels(generator, SIZES if padded else SIZES[:1])
    area = valid.to(DEVICE) if padded else None
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = net.pyramid(normalize(pixels.to(DEVICE), area), area)
        use_libraries(net)
        assert net.takes_blocks
        found = net.pyramid(normalize(pixels.to(DEVICE), area, blocks=True), area)
    assert found.shapes == expected.shapes
    for name in ("memory", "placed", "centres", "valid_ratios"):
        one, other = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
