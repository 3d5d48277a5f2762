"""An image that overflows fp16 is detected again with encoder and decoder in bf16."""

import pytest
import torch
from torch import Tensor

from model.deformable_detr import DeformableDetr
from model.detector import Detections
from model.fallback import Fallback
from model.predictor import Predictor
from model.preprocess import form_batch
from model.resize import CanvasRule
from model.zoo import create_deformable_detr, prepare
from tests.support.parameters import others_slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LARGEST = torch.finfo(torch.float16).max
SIZE = (90, 120)
BOARD = (torch.arange(SIZE[0])[:, None] // 8 + torch.arange(SIZE[1]) // 8) % 2 * 255
BRIGHT = BOARD.byte()[..., None].expand(-1, -1, 3).contiguous()  # overflows
GREY = torch.full((*SIZE, 3), 128, dtype=torch.uint8)
SHOWN = torch.tensor([SIZE] * 3)


def draw_noise(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (*SIZE, 3), generator=generator, dtype=torch.uint8)


def largest_hidden(net: DeformableDetr, image: Tensor) -> float:
    """Return the largest number of the first encoder layer's hidden layer, in fp32."""
    found: list[float] = []
    linear = net.transformer.encoder.layers[0].get_submodule("linear1")
    hook = linear.register_forward_hook(lambda *call: found.append(float(call[2].max())))
    with torch.no_grad():
        net((image.permute(2, 0, 1)[None] / 64 - 2).to(DEVICE))
    hook.remove()
    return found[0]


@pytest.fixture
def overflowing() -> DeformableDetr:
    """A detector for training that overflows fp16 for BRIGHT, and not for GREY.

    One layer multiplies by a number by which the next divides: the results in fp32 stay the same.
    """
    net = create_deformable_detr("shapes-tiny", device=DEVICE, padding="invariant", training=True)
    bright, grey = (largest_hidden(net, image) for image in (BRIGHT, GREY))
    assert bright > 1.2 * grey
    scale = LARGEST / (bright * grey) ** 0.5
    layer = net.transformer.encoder.layers[0]
    with torch.no_grad():
        for name in ("linear1.weight", "linear1.bias"):
            layer.get_parameter(name).mul_(scale)
        layer.get_parameter("linear2.weight").div_(scale)
    return net


def predictor_of(net: DeformableDetr) -> Predictor:
    """Return a predictor that pads and batches as on a GPU."""
    predictor = Predictor(net, DEVICE, top=20, count=3)
    predictor.pads, predictor.count = True, 3
    predictor.canvases = CanvasRule(96, 64)
    return predictor


def detect(predictor: Predictor, *images: Tensor) -> Detections:
    pixels, valid, _ = form_batch(images, predictor)
    return predictor.submit(pixels, valid, SHOWN).result()


def assert_same(found: Detections, at: int, expected: Detections, expected_at: int) -> None:
    for name in ("scores", "labels", "boxes"):
        assert torch.equal(getattr(found, name)[at], getattr(expected, name)[expected_at]), name


@pytest.mark.slow
def test_an_image_that_overflows_gets_the_bits_of_bf16_and_its_neighbours_keep_theirs(
    overflowing: DeformableDetr,
) -> None:
    predictor = predictor_of(prepare(overflowing, "mixed"))
    fallback = predictor.net.fallback
    assert isinstance(fallback, Fallback)
    alone = detect(predictor, GREY)
    assert alone.scores.isfinite().all() and fallback._made is None  # not needed yet
    expected = detect(predictor, BRIGHT)
    assert expected.scores.isfinite().all() and fallback._made is not None
    for at in range(3):
        images = [GREY] * 3
        images[at] = BRIGHT
        found = detect(predictor, *images)
        assert_same(found, at, expected, 0)
        assert_same(found, at - 1, alone, 0)
    both = detect(predictor, BRIGHT, GREY, BRIGHT)
    assert_same(both, 0, expected, 0)
    assert_same(both, 2, expected, 0)
    in_bf16 = detect(predictor_of(fallback()), GREY, BRIGHT)
    assert_same(in_bf16, 1, expected, 0)
    assert not torch.equal(in_bf16.scores[0], alone.scores[0])  # fp16 has other bits
    predictor.net.fallback = None
    found = detect(predictor, GREY, BRIGHT)
    assert_same(found, 0, alone, 0)
    assert found.scores[1].isnan().all()


def test_an_image_that_is_not_finite_in_bf16_either_stays_so(overflowing: DeformableDetr) -> None:
    with torch.no_grad():
        overflowing.transformer.encoder.layers[0].get_parameter("linear2.bias")[0] = float("nan")
    predictor = predictor_of(prepare(overflowing, "mixed"))
    found = detect(predictor, BRIGHT)
    assert found.scores.isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", others_slow(["shapes-tiny", "deformable-detr-with-box-refine-two-stage"])
)
def test_results_are_near_those_of_fp32(model: str, generator: torch.Generator) -> None:
    images = [draw_noise(generator) for _ in range(2)]
    weights = None if model == "shapes-tiny" else "random"
    exact, mixed = (
        create_deformable_detr(model, weights, DEVICE, precision, "invariant")
        for precision in ("fp32", "mixed")
    )
    assert mixed.fallback is not None
    answers = [detect(predictor_of(net), *images) for net in (exact, mixed, mixed.fallback())]
    for found in answers[1:]:
        assert (found.scores - answers[0].scores).abs().max() < 0.02


def test_weights_of_both_dtypes_are_cast_from_fp32() -> None:
    mixed, *others = (
        create_deformable_detr(
            "shapes-tiny", device=DEVICE, precision=precision, padding="invariant"
        )
        for precision in ("mixed", "fp16", "bf16")
    )
    assert mixed.fallback is not None
    for net, other in zip((mixed, mixed.fallback()), others, strict=True):
        expected = dict(other.transformer.named_parameters())
        found = dict(net.transformer.named_parameters())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert net.transformer_dtype == other.transformer_dtype and net.dtype == torch.bfloat16
    assert mixed.backbone is mixed.fallback().backbone


def test_mixed_is_not_for_training() -> None:
    with pytest.raises(ValueError, match="'mixed' is for inference"):
        create_deformable_detr("shapes-tiny", precision="mixed", training=True)
