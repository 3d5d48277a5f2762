"""`Predictor` gives the results of the network, and a GPU never waits for the host."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import fused_convolution, fused_layers, inference, int8, preprocess
from model.fused_pyramid import frequencies_on, strides_on
from model.named import SET_MODELS
from model.ops import torch_internals, ways
from model.ops.pyramid import entries_on, lines_on
from model.ops.triton import levels_on
from model.postprocess import best_pairs
from model.predictor import Predictor, likely_sizes
from model.preprocess import _mean_and_std, batch_images, form_batch
from model.resample import resize_pixels
from model.resize import CanvasRule, ResizeRule, canvas_rule
from model.zoo import create_model, prepare
from tests.support.parameters import slow_but

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def draw_images(sizes: Sequence[tuple[int, int]], generator: torch.Generator) -> list[Tensor]:
    return [
        torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8) for size in sizes
    ]


@pytest.mark.parametrize("size", [(96, 128), (64, 160), (90, 70)])
def test_results_equal_those_of_the_network(
    size: tuple[int, int], generator: torch.Generator
) -> None:
    net = create_model("shapes-tiny", padding="invariant")
    images = draw_images([size], generator)
    shown = torch.tensor([size]) * 2
    predictor = Predictor(net, "cpu", top=20)
    pixels, valid, _ = form_batch(images, predictor)
    pending = predictor.submit(pixels, valid, shown)
    found = pending.result()
    assert pending.device_seconds is None
    with torch.inference_mode():
        expected = best_pairs(net(*batch_images(images, "cpu")), shown, 20)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.boxes, expected.boxes)


@pytest.mark.parametrize("model", ["shapes-tiny", "deformable-detr-single-scale"])
def test_an_image_on_its_canvas_gives_what_it_gives_alone(
    model: str, generator: torch.Generator
) -> None:
    """The form of a GPU, in fp32 on this CPU: padded, beside neighbours and beside blanks."""
    net = create_model(model, "random", padding="invariant")
    images = draw_images([(96, 130), (90, 140), (70, 190)], generator)
    predictor = Predictor(net, "cpu", top=20)
    alone = [
        predictor.submit(image[None], None, torch.tensor([[96, 130]])).result() for image in images
    ]
    predictor.pads, predictor.count = True, 4
    predictor.canvases = CanvasRule(96, 64)
    pixels, valid, _ = form_batch(images, predictor)
    assert pixels.shape == (4, 96, 192, 3) and valid is not None
    found = predictor.submit(pixels, valid, torch.tensor([[96, 130]] * 4)).result()
    for index, own in enumerate(alone):
        assert torch.allclose(found.scores[index], own.scores[0], atol=1e-5)
        apart = -own.scores[0].diff() > 2e-5  # others may change places
        clear = F.pad(apart, (1, 0), value=True) & F.pad(apart, (0, 1))  # the last one may go
        assert clear.any()
        assert torch.allclose(found.boxes[index][clear], own.boxes[0][clear], atol=1e-2)


@pytest.mark.parametrize("enlarges", [False, True])
def test_a_batch_has_the_images_and_the_sizes_that_they_become(
    enlarges: bool, generator: torch.Generator
) -> None:
    predictor = Predictor(create_model("shapes-tiny", padding="invariant"), "cpu")
    predictor.pads, predictor.count, predictor.enlarges = True, 3, enlarges
    predictor.canvases = CanvasRule(32, 64)
    images, targets = draw_images([(30, 40), (64, 70)], generator), [(60, 80), (64, 70)]
    pixels, valid, sources = form_batch(images, predictor, targets)
    assert pixels.shape == (3, 64, 128, 3)
    assert valid is not None and valid.tolist() == [[60, 80], [64, 70], [1, 1]]
    own = [(30, 40) if enlarges else (60, 80), (64, 70)]
    assert (None if sources is None else sources.tolist()) == (
        [*map(list, own), [1, 1]] if enlarges else None
    )
    for found, image, (height, width) in zip(pixels, images, own, strict=False):
        assert torch.equal(found[:height, :width], resize_pixels(image, (height, width)))
    _, _, sources = form_batch(images[1:], predictor, targets[1:])
    assert sources is None


def test_likely_sizes_are_resized_sizes_of_other_canvases() -> None:
    rule = ResizeRule(800, 1333)
    sizes = likely_sizes(rule)
    assert sizes[:2] == [(800, 1066), (1066, 800)] and (800, 1333) not in sizes
    assert (750, 1333) in sizes  # 9:16 would be 1422 long
    canvases = {canvas_rule(rule).canvas(*size) for size in sizes}
    assert len(canvases) == len(sizes) == 9
    assert all(rule.target_size(*size) == size for size in sizes)


def test_a_cpu_warms_up_once() -> None:
    predictor = Predictor(create_model("shapes-tiny", padding="invariant"), "cpu")
    assert not predictor.warm_up() and not predictor.warm_up()


class Crossings(TorchDispatchMode):
    """Records every operation that reads or creates a tensor outside the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if any(tensor.device.type != "cuda" for tensor in tensors):
            self.found.append(str(func))
        return out


def pretend_on_gpu(net: nn.Module, mode: FakeTensorMode) -> None:
    """Replace all tensors of `net` by fake ones on a GPU, which have a shape but no data."""
    for module in net.modules():
        dictionaries: list[dict[str, Any]] = [vars(module)]
        dictionaries += [vars(module)["_parameters"], vars(module)["_buffers"]]
        for tensors in dictionaries:
            for name, tensor in tensors.items():
                if isinstance(tensor, Tensor):
                    fake = mode.from_tensor(tensor).to("cuda")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(fake, False) if is_parameter else fake


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("model", "chosen", "precision"),
    slow_but(
        [
            ("shapes-tiny", 0, "bf16"),
            ("shapes-tiny", 1, "bf16"),
            ("shapes-tiny", 0, "int8"),
        ],
        [
            *((model, 0, "bf16") for model in SET_MODELS),
            ("deformable-detr", 1, "bf16"),
            ("shapes-tiny", 1, "bf16"),
            ("deformable-detr", 0, "int8"),
            ("shapes-tiny", 0, "int8"),
        ],
    ),
)
def test_a_gpu_never_waits_for_the_host(
    model: str, padded: bool, chosen: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors are fake: an operation that reads a value raises, and copies are recorded.

    `chosen` is the way that is taken wherever there are two.
    """
    monkeypatch.setattr(ways, "WAYS", {what: (two[chosen],) for what, two in ways.WAYS.items()})
    monkeypatch.setattr(ways, "_kept", dict)  # no GPU is measured
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch_internals, "has_onednn", lambda device, dtype: False)  # as on GPUs
    monkeypatch.setattr(fused_layers, "MANY_FROM", 1)
    for module in (fused_convolution, fused_layers, inference, int8, preprocess):
        monkeypatch.setattr(module, "by_triton", lambda device: True)
    net = prepare(create_model(model, "random", padding="invariant", training=True), precision)
    assert net.takes_blocks == (chosen == 1 and net.config.backbone == "resnet50")
    predictor = Predictor(net, "cpu")
    with FakeTensorMode() as mode, torch.inference_mode():
        pretend_on_gpu(net, mode)
        pixels = torch.empty(2, 192, 256, 3, dtype=torch.uint8, device="cuda")
        valid = torch.empty(2, 2, dtype=torch.int64, device="cuda") if padded else None
        sizes = torch.empty(2, 2, dtype=torch.int64, device="cuda")
        try:
            predictor._detect(pixels, valid, sizes)  # fills the caches of this shape
            with Crossings() as crossings:
                packed = predictor._detect(pixels, valid, sizes)
        finally:
            for cached in (levels_on, lines_on, entries_on, frequencies_on, strides_on):
                cached.cache_clear()
            _mean_and_std.cache_clear()
    assert packed.device.type == "cuda" and packed.shape[2] == 6
    assert not crossings.found


@needs_gpu
def test_recordings_repeat_the_function(generator: torch.Generator) -> None:
    """Forms take turns six times, so that all but the first run of each are replayed."""
    net = create_model("shapes-tiny", device="cuda", padding="invariant")
    predictor = Predictor(net, "cuda", top=20, count=3)
    for _ in range(6):
        for sizes in ([(96, 128)] * 3, [(120, 128), (126, 128)], [(64, 64)]):
            images = draw_images(sizes, generator)
            shown = torch.tensor([*sizes, *[(1, 1)] * (3 - len(sizes))])
            began = time.perf_counter()
            pixels, valid, _ = form_batch(images, predictor)
            waiting = [predictor.submit(pixels, valid, shown) for _ in range(2)]
            with torch.inference_mode():
                expected = best_pairs(net(*batch_images(images, "cuda")), shown.cuda(), 20)
            for pending in waiting:
                found = pending.result()
                for index in range(len(sizes)):
                    theirs = expected.scores[index].cpu(), expected.boxes[index].cpu()
                    assert torch.allclose(found.scores[index], theirs[0], atol=1e-4)
                    assert torch.allclose(found.boxes[index], theirs[1], atol=0.05)
            took = time.perf_counter() - began
            computed = [pending.device_seconds or 0.0 for pending in waiting]
            assert min(computed) > 0 and sum(computed) < took


@needs_gpu
def test_images_that_a_gpu_enlarges_get_the_same_bits(generator: torch.Generator) -> None:
    """At first one by one, then recorded, then replayed."""
    net = create_model("shapes-tiny", device="cuda", padding="invariant")
    predictor = Predictor(net, "cuda", top=20, count=4)
    assert predictor.enlarges
    targets = [(120, 128), (126, 127), (128, 100)]
    images = draw_images([(60, 64), (126, 127), (1, 33)], generator)
    shown = torch.tensor([*targets, (1, 1)])
    resized = [resize_pixels(*pair) for pair in zip(images, targets, strict=True)]
    large, valid, nothing = form_batch(resized, predictor)
    small, _, sources = form_batch(images, predictor, targets)
    assert nothing is None and sources is not None
    expected = predictor.submit(large, valid, shown).result()
    for _ in range(4):
        found = predictor.submit(small, valid, shown, sources).result()
        assert torch.equal(found.scores[:3], expected.scores[:3])
        assert torch.equal(found.boxes[:3], expected.boxes[:3])
