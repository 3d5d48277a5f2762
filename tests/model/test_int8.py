"""The feed-forward network in int8: its rounding, its kernels, and the detector that has it."""

import importlib.util

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.deformable_detr import DeformableDetr
from model.errors import UnknownName
from model.int8 import Int8FeedForward
from model.ops.narrow import GROUP, Narrow, narrowed
from model.zoo import create_deformable_detr, prepare, resolved_precision

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from model.ops.int8 import multiply_int8, multiply_relu_int8
from model.ops.pointwise import add_norm, add_norm_narrow

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1, 64, 96), (3, 77, 128, 384), (1, 130, 256, 1024)]  # images, cells, C, hidden


def wide(x: Narrow) -> Tensor:
    """The numbers that `x` stands for, in fp64."""
    width, groups = x.numbers.shape[-1], x.scales.shape[-1]
    group = width if groups == 1 else GROUP
    scales = x.scales.repeat_interleave(group, dim=-1)[..., :width]
    return x.numbers.double() * scales.double()


def draw_narrow(shape: tuple[int, ...], group: int, generator: torch.Generator) -> Narrow:
    return narrowed(torch.randn(shape, generator=generator).to(DEVICE), group)


def draw_layer(inputs: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Weight (D, C) int8, scale and bias (D,), and the weight that they stand for, in fp64."""
    weight = draw_narrow((outputs, inputs), inputs, generator)
    bias = torch.randn(outputs, generator=generator).to(DEVICE)
    return weight.numbers, weight.scales[:, 0], bias, wide(weight)


@pytest.mark.parametrize("group", [GROUP, 300])
def test_rounding_is_half_a_step_of_the_row_or_group(
    group: int, generator: torch.Generator
) -> None:
    x = torch.randn(5, 3, 300, generator=generator) * 10 ** torch.randn(5, 3, 1).double()
    x[0, 0], x[1, 0, 7] = 0, 1e4
    found = narrowed(x, group)
    assert found.numbers.shape == x.shape and found.scales.shape == (5, 3, -(-300 // group))
    step = found.scales.repeat_interleave(group, dim=-1)[..., :300]
    assert ((wide(found) - x).abs() <= step * 0.5001).all()
    assert (wide(found)[0, 0] == 0).all()
    assert found.numbers[1, 0].abs().max() == 127


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_makes_its_row_nan_and_no_other(wrong: float) -> None:
    x = torch.ones(3, 64)
    x[1, 5] = wrong
    assert narrowed(x, 64).scales[:, 0].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_equal_those_in_fp64(
    dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator
) -> None:
    images, cells, channels, hidden = shape
    for inputs, outputs, group in ((channels, hidden, channels), (hidden, channels, GROUP)):
        x = draw_narrow((images, cells, inputs), group, generator)
        *layer, weight = draw_layer(inputs, outputs, generator)
        expected = F.linear(wide(x), weight, layer[2].double())
        found = multiply_int8(*x, *layer, dtype)
        # Triton's interpreter truncates to bf16, but GPUs round.
        tolerance = max(1e-5, torch.finfo(dtype).eps)
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_hidden_layer_is_rounded_as_by_torch(
    shape: tuple[int, ...], generator: torch.Generator
) -> None:
    images, cells, channels, hidden = shape
    x = draw_narrow((images, cells, channels), channels, generator)
    *layer, weight = draw_layer(channels, hidden, generator)
    expected = F.linear(wide(x), weight, layer[2].double()).relu()
    numbers, scales = multiply_relu_int8(*x, *layer)
    by_torch = narrowed(expected, GROUP)
    torch.testing.assert_close(scales, by_torch.scales, rtol=1e-5, atol=1e-7)
    assert (numbers.int() - by_torch.numbers.int()).abs().max() <= 1
    assert (numbers != by_torch.numbers).float().mean() < 1e-3  # where rounding is undecided


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 77, 256), (1, 3, 96), (1, 1, 64)])
def test_the_norm_is_that_of_add_norm_and_is_rounded_by_row(
    dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator
) -> None:
    x, residual = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[-1], generator=generator).to(DEVICE, dtype) for _ in range(2))
    found, *narrow = add_norm_narrow(x, residual, weight, bias, 1e-5)
    assert torch.equal(found, add_norm(x, residual, weight, bias, 1e-5))
    expected = F.layer_norm(
        x.double() + residual.double(), shape[-1:], weight.double(), bias.double(), 1e-5
    )
    scales = expected.abs().amax(-1, keepdim=True) / 127
    torch.testing.assert_close(narrow[1].double(), scales, rtol=1e-5, atol=0)
    assert ((wide(Narrow(*narrow)) - expected).abs() <= scales * 0.501).all()


def kernels_of(forward: Int8FeedForward) -> Int8FeedForward:
    """The same network, computed by the kernels on any device."""
    forward.triton = True
    return forward


@pytest.mark.parametrize("channels, hidden", [(128, 384), (64, 200)])
def test_the_network_is_near_that_in_fp32_and_equals_its_reference(
    channels: int, hidden: int, generator: torch.Generator
) -> None:
    layers = nn.Linear(channels, hidden).to(DEVICE), nn.Linear(hidden, channels).to(DEVICE)
    x = torch.randn(3, 50, channels, generator=generator).to(DEVICE)
    network = Int8FeedForward(*layers, torch.float32)
    network.triton = False
    with torch.inference_mode():
        exact = layers[1](layers[0](x).relu())
        reference = network(narrowed(x, channels))
        found = kernels_of(network)(narrowed(x, channels))
    assert (reference - exact).abs().max() < 0.03 * exact.abs().max()
    assert (found - reference).abs().max() < 0.005 * exact.abs().max()


def test_a_cell_has_the_same_bits_in_any_batch_beside_anything(generator: torch.Generator) -> None:
    network = kernels_of(Int8FeedForward(nn.Linear(128, 384), nn.Linear(384, 128), torch.float32))
    images = torch.randn(3, 150, 128, generator=generator)

    def detect(x: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = network.to(DEVICE)(narrowed(x.to(DEVICE), 128))
        return found

    alone = detect(images[:1])[0]
    for wrong in (torch.inf, torch.nan):
        beside = images.clone()
        beside[1:], beside[0, 20:] = wrong, wrong
        found = detect(beside)
        assert torch.equal(found[0, :20], alone[:20]) and not found[1:].isfinite().any()
        assert torch.equal(detect(beside.flip(0))[2, :20], alone[:20])


@pytest.mark.parametrize("weight", [torch.nan, torch.inf])
def test_damaged_weights_give_no_finite_numbers(weight: float) -> None:
    layers = nn.Linear(64, 128).to(DEVICE), nn.Linear(128, 64).to(DEVICE)
    layers[0].weight.data[3, 5] = weight
    for by_kernels in (False, True):
        network = Int8FeedForward(*layers, torch.float32)
        network.triton = by_kernels
        with torch.inference_mode():
            assert network(narrowed(torch.ones(1, 2, 64, device=DEVICE), 64)).isnan().all()


def detector(precision: str) -> DeformableDetr:
    net = create_deformable_detr("shapes-tiny", device=DEVICE, padding="invariant", training=True)
    return prepare(net, precision)


@torch.inference_mode()
def test_a_detector_is_near_that_in_bf16(generator: torch.Generator) -> None:
    """Logits differ from those in fp32 by less than twice what they differ by in bf16.

    That holds for the mean of some images: in one of a thousand, another proposal comes first.
    """
    values = torch.randn(8, 3, 64, 96, generator=generator).to(DEVICE)
    valid = torch.tensor([[64, 96], [50, 70]] * 4, device=DEVICE)
    exact, rounded, found = (
        detector(precision)(values, valid=valid).pred_logits.amax((1, 2))
        for precision in ("fp32", "bf16", "int8")
    )
    assert (found - exact).abs().mean() < 2 * (rounded - exact).abs().mean() + 0.03


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.skipif(DEVICE == "cuda", reason="on GPUs the other tests take this path")
def test_a_detector_by_kernels_is_that_by_torch(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Both round the rest to bf16 at the same places, but not with the same results."""
    values = torch.randn(1, 3, 32, 64, generator=generator)
    plain = detector("int8")
    monkeypatch.setattr("model.ops.torch_internals.has_onednn", lambda *_: False)
    for there in ("model.inference", "model.fused_layers", "model.int8"):
        monkeypatch.setattr(f"{there}.by_triton", lambda device: True)
    by_kernels = detector("int8")
    logits = [net(values).pred_logits.amax((1, 2)) for net in (plain, by_kernels)]
    torch.testing.assert_close(logits[1], logits[0], atol=0.2, rtol=0)


def test_int8_is_for_inference_on_gpus() -> None:
    with pytest.raises(ValueError, match="'int8' is for inference"):
        create_deformable_detr("shapes-tiny", device=DEVICE, precision="int8", training=True)
    with pytest.raises(UnknownName, match="is for GPUs, and the detectors would run on a CPU"):
        create_deformable_detr("shapes-tiny", precision="int8")


def test_old_gpus_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    with pytest.raises(UnknownName, match=r"Tesla T4 is below compute capability 8\.0"):
        resolved_precision("int8", "cuda")
