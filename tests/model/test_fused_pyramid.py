"""The pyramid of GPUs gives each image what torch's operations give its valid part alone."""

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from model.config import shapes_tiny
from model.deformable_detr import DeformableDetr
from model.fused_pyramid import FusedPyramid
from model.inference import prepare_for_inference
from model.padding import strides_of, valid_at
from model.position_encoding import sine_position_encoding
from tests.support.parameters import others_slow

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative to the largest number. Triton's interpreter truncates to bf16, but GPUs round.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
WIDTH = 64
# Sizes of the canvas, and of each image on it.
BATCHES = {
    "several programs": ((64, 128), [(64, 128), (40, 97), (1, 1)]),
    "odd sides": ((67, 45), [(67, 45), (33, 44)]),
    "one image": ((64, 64), [(64, 1)]),
}
FORMS = {"published": (3, True), "single scale": (1, False)}  # feature maps, and an extra level


def create_projections(maps: int, extra: bool, generator: torch.Generator) -> nn.ModuleList:
    channels = (16, 48, 96)[-maps:]
    convolutions = [nn.Conv2d(count, WIDTH, 1) for count in channels]
    convolutions += [nn.Conv2d(channels[-1], WIDTH, 3, 2, 1)] if extra else []
    for conv in convolutions:
        # A group has variance even in a single cell, where rounding would be magnified otherwise.
        assert conv.bias is not None
        conv.weight.data.normal_(generator=generator).mul_(0.04)
        conv.bias.data.normal_(generator=generator).add_(12 * (-1.0) ** torch.arange(WIDTH))
    norms = [nn.GroupNorm(32, WIDTH) for _ in convolutions]
    for norm in norms:
        norm.weight.data.normal_(generator=generator)
        norm.bias.data.normal_(generator=generator)
    pairs = [nn.Sequential(*pair) for pair in zip(convolutions, norms, strict=True)]
    return nn.ModuleList(pairs)


def pairs_of(projections: nn.ModuleList) -> list[Any]:
    return [tuple(pair) for pair in projections]  # type: ignore[arg-type]


def draw_features(
    maps: int, size: tuple[int, int], batch: int, generator: torch.Generator
) -> list[Tensor]:
    """Draw maps of strides 8, 16 and 32 whose mean is far from 0, channels last in memory."""
    features = []
    for channels, stride in list(zip((16, 48, 96), (8, 16, 32), strict=True))[-maps:]:
        shape = (batch, channels, *(-(-side // stride) for side in size))
        drawn = torch.randn(shape, generator=generator) + 3
        features.append(drawn.contiguous(memory_format=torch.channels_last))
    return features


def expected_levels(
    projections: nn.ModuleList, features: list[Tensor], embedding: Tensor, areas: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Compute maps and positions (C, h, w) of one image's valid part in fp64, level by level."""
    crops = [
        f[:, : int(area[0]), : int(area[1])].double()[None]
        for f, area in zip(features, areas, strict=False)
    ]
    crops += [crops[-1]] * (len(projections) - len(crops))
    levels = []
    for index, (crop, projection) in enumerate(zip(crops, projections, strict=True)):
        projected = projection.double()(crop)
        mask = torch.ones(1, *projected.shape[2:], dtype=torch.bool)
        position = sine_position_encoding(mask, WIDTH).double()
        levels.append((projected[0], position[0] + embedding[index].double()[:, None, None]))
    return levels


@torch.inference_mode()
@pytest.mark.parametrize("dtype", others_slow(TOLERANCES))
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("form", FORMS)
def test_levels_are_those_of_each_image_alone(
    dtype: torch.dtype, batch: str, form: str, generator: torch.Generator
) -> None:
    size, sizes = BATCHES[batch]
    maps, extra = FORMS[form]
    projections = create_projections(maps, extra, generator)
    embedding = torch.randn(maps + extra, WIDTH, generator=generator)
    features = [f.to(dtype) for f in draw_features(maps, size, len(sizes), generator)]
    fused = FusedPyramid(pairs_of(projections.to(DEVICE)), embedding.to(DEVICE), dtype)
    valid = torch.tensor(sizes)
    for index, feature in enumerate(features):  # what lies in padding must not matter
        areas = valid_at(valid, size, feature.shape[2:])
        for image, (height, width) in enumerate(areas.tolist()):
            feature[image, :, height:] = (float("nan"), float("inf"), 7.0)[index]
            feature[image, :, :, width:] = float("nan")
    found = fused([f.to(DEVICE) for f in features], size, valid.to(DEVICE), dtype)
    starts = [0]
    for height, width in found.shapes:
        starts.append(starts[-1] + height * width)
    projections.to("cpu")
    for image in range(len(sizes)):
        own = valid[image : image + 1]
        own_areas = [valid_at(own, size, shape)[0] for shape in found.shapes]
        expected = expected_levels(projections, [f[image] for f in features], embedding, own_areas)
        for index, ((height, width), (projected, position)) in enumerate(
            zip(found.shapes, expected, strict=True)
        ):
            cells = slice(starts[index], starts[index + 1])
            rows, columns = own_areas[index].tolist()
            for level, truth in (
                (found.memory, projected),
                (found.placed, projected + position),
            ):
                here = level[image, cells].view(height, width, WIDTH).cpu().double()
                assert here.isfinite().all()
                difference = (here[:rows, :columns] - truth.permute(1, 2, 0)).abs().max()
                assert difference <= TOLERANCES[dtype] * truth.abs().max()
            centres = found.centres[image, cells].view(height, width, 2)[:rows, :columns].cpu()
            torch.testing.assert_close(
                centres[..., 0], (torch.arange(columns) + 0.5).expand(rows, -1) / columns
            )
            torch.testing.assert_close(centres[:, 0, 1], (torch.arange(rows) + 0.5) / rows)
            ratios = torch.tensor([columns / width, rows / height])
            torch.testing.assert_close(found.valid_ratios[image, index].cpu(), ratios)
            assert found.padding is not None
            padding = found.padding[image, cells].view(height, width)
            assert not padding[:rows, :columns].any()
            assert int(padding.sum()) == height * width - rows * columns


@pytest.mark.slow
@torch.inference_mode()
def test_bits_of_an_image_are_those_beside_any_neighbours(generator: torch.Generator) -> None:
    projections = create_projections(3, True, generator)
    embedding = torch.randn(4, WIDTH, generator=generator)
    pairs = pairs_of(projections.to(DEVICE))
    fused = FusedPyramid(pairs, embedding.to(DEVICE), torch.bfloat16)
    features = [f.to(DEVICE, torch.bfloat16) for f in draw_features(3, (64, 96), 3, generator)]
    valid = torch.tensor([(60, 90), (60, 90), (20, 30)], device=DEVICE)
    first = fused(features, (64, 96), valid, torch.bfloat16)
    for feature in features:
        feature[1] = feature[0]
        feature[0], feature[2] = float("nan"), float("inf")
    second = fused(features, (64, 96), valid, torch.bfloat16)
    assert isinstance(first.position, Tensor) is False
    for one, other in ((first.memory, second.memory), (first.placed, second.placed)):
        assert torch.equal(one[0], other[1])


@pytest.mark.parametrize(
    ("size", "levels", "strides"),
    [
        ((800, 1066), [(100, 134), (50, 67), (25, 34), (13, 17)], [8, 16, 32, 64]),
        ((1, 1333), [(1, 167)], [8]),
        ((1, 1), [(1, 1)], [1]),
    ],
)
def test_strides_divide_as_convolutions_do(
    size: tuple[int, int], levels: list[tuple[int, int]], strides: list[int]
) -> None:
    assert strides_of(size, levels) == strides
    for level, stride in zip(levels, strides, strict=True):
        for valid in ((1, 1), size, (size[0] // 2 + 1, size[1] // 3 + 1)):
            area = valid_at(torch.tensor([valid]), size, level)
            assert area.tolist() == [[-(-side // stride) for side in valid]]


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.skipif(DEVICE == "cuda", reason="on GPUs all tests of the predictor take this path")
@pytest.mark.parametrize("two_stage", others_slow([True, False]))
def test_a_detector_is_equal_with_the_fused_pyramid(
    two_stage: bool, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Both on CPUs: the fused pyramid and its positions run in Triton's interpreter."""
    config = replace(
        shapes_tiny(),
        two_stage=two_stage,
        with_box_refine=two_stage,
        encoder_layers=2,
        num_queries=9,
    )
    torch.manual_seed(5)
    nets = [DeformableDetr(config, padding="invariant").eval() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    plain = prepare_for_inference(nets[0], torch.float32)
    for there in ("model.inference", "model.fused_layers"):
        monkeypatch.setattr(f"{there}.by_triton", lambda device: True)
    monkeypatch.setattr("model.ops.torch_internals.has_onednn", lambda *_: False)
    fused = prepare_for_inference(nets[1], torch.float32)
    assert plain.fused_pyramid is None and fused.fused_pyramid is not None
    values = torch.randn(2, 3, 64, 40, generator=generator)
    valid = torch.tensor([(64, 40), (50, 17)])
    values[1, :, 50:], values[1, :, :, 17:] = 0, 0
    for area in (None, valid):
        expected, found = (net(values, valid=area) for net in (plain, fused))
        torch.testing.assert_close(found.pred_logits, expected.pred_logits, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=1e-3)
