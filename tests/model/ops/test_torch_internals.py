"""Torch's undocumented operations have the signatures and the results that we rely on."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.ops import torch_internals

GEOMETRY = ([1, 1], [2, 2], [1, 1], 1)  # padding, stride, dilation, groups
# Signatures in torch 2.11 to 2.15. If one differs, read what changed before you update it here.
CONVOLUTION = "int[] padding, int[] stride, int[] dilation, int groups"
SCHEMAS = {
    "mkldnn::_convolution_pointwise": f"(Tensor X, Tensor W, Tensor? B, {CONVOLUTION}, str attr, "
    "Scalar?[] scalars, str? algorithm) -> Tensor Y",
    "mkldnn::_convolution_pointwise_.binary": "(Tensor(a!) other, Tensor X, Tensor W, Tensor? B, "
    f"{CONVOLUTION}, str binary_attr, Scalar? alpha, str? unary_attr, Scalar?[] unary_scalars, "
    "str? unary_algorithm) -> Tensor(a!) Y",
    "mkldnn::_linear_pointwise": "(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, "
    "str? algorithm) -> Tensor Y",
    "mkldnn::_linear_pointwise.binary": "(Tensor X, Tensor other, Tensor W, Tensor? B, str attr) "
    "-> Tensor Y",
    "mkldnn::_reorder_linear_weight": "(Tensor self, int? batch_size=None) -> Tensor Y",
    "aten::_addmm_activation": "(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, "
    "Scalar alpha=1, bool use_gelu=False) -> Tensor",
}
onednn = pytest.mark.skipif(
    not torch_internals.has_onednn(torch.device("cpu"), torch.float32),
    reason="this torch has no oneDNN",
)


@onednn
@pytest.mark.parametrize("name", SCHEMAS)
def test_signatures_are_those_that_we_call(name: str) -> None:
    space, _, operation = name.partition("::")
    packet, _, overload = operation.partition(".")
    found = getattr(getattr(getattr(torch.ops, space), packet), overload or "default")
    assert str(found._schema) == f"{name}{SCHEMAS[name]}"


def random_tensor(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


@onednn
@pytest.mark.parametrize("relu", [False, True])
def test_convolutions_equal_the_documented_ones(relu: bool, generator: torch.Generator) -> None:
    x, weight = random_tensor(generator, 2, 5, 9, 7), random_tensor(generator, 6, 5, 3, 3)
    bias, residual = random_tensor(generator, 6), random_tensor(generator, 2, 6, 5, 4)
    padding, stride, dilation, groups = GEOMETRY
    plain = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    expected = F.relu(plain) if relu else plain
    torch.testing.assert_close(torch_internals.convolve(x, weight, bias, GEOMETRY, relu), expected)
    expected = F.relu(plain + residual) if relu else plain + residual
    found = torch_internals.convolve_add_(residual.clone(), x, weight, bias, GEOMETRY, relu)
    torch.testing.assert_close(found, expected)


@onednn
def test_linear_layers_equal_the_documented_ones(generator: torch.Generator) -> None:
    x, weight = random_tensor(generator, 3, 7, 5), random_tensor(generator, 6, 5)
    bias, residual = random_tensor(generator, 6), random_tensor(generator, 3, 7, 6)
    packed, plain = torch_internals.pack_weight(weight), F.linear(x, weight, bias)
    torch.testing.assert_close(torch_internals.linear(x, packed, bias, False), plain)
    torch.testing.assert_close(torch_internals.linear(x, packed, bias, True), F.relu(plain))
    found = torch_internals.linear_add(x, residual, packed, bias)
    torch.testing.assert_close(found, plain + residual)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_linear_relu_equals_linear_and_relu(device: str, generator: torch.Generator) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    x, weight, bias = (
        random_tensor(generator, *shape).to(device) for shape in ((3, 7, 5), (6, 5), (6,))
    )
    found = torch_internals.linear_relu_on_gpu(x, weight, bias)
    torch.testing.assert_close(found, F.relu(F.linear(x, weight, bias)))
