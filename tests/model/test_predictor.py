"""`Predictor` gives the results of the network, and a GPU never waits for the host."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import fused_layers, preprocess
from model.ops import undocumented
from model.ops.triton import levels_on
from model.postprocess import postprocess
from model.predictor import Predictor
from model.preprocess import _mean_and_std, batch_images
from model.zoo import MODELS, create_model

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def draw_images(sizes: Sequence[tuple[int, int]], generator: torch.Generator) -> list[Tensor]:
    return [
        torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8) for size in sizes
    ]


@pytest.mark.parametrize("sizes", [[(96, 128)] * 3, [(96, 128), (64, 160), (90, 70)]])
def test_results_equal_those_of_the_network(
    sizes: list[tuple[int, int]], generator: torch.Generator
) -> None:
    net = create_model("shapes-tiny", padding="invariant")
    images = draw_images(sizes, generator)
    shown = torch.tensor(sizes) * 2
    pending = Predictor(net, "cpu", top=20).submit(images, shown)
    found = pending.result()
    assert pending.device_seconds is None
    with torch.inference_mode():
        expected = postprocess(net(*batch_images(images, "cpu")), shown, 20)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.boxes, expected.boxes)


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
@pytest.mark.parametrize("model", MODELS)
def test_a_gpu_never_waits_for_the_host(
    model: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors are fake: an operation that reads a value raises, and copies are recorded."""
    monkeypatch.setattr(undocumented, "has_onednn", lambda device, dtype: False)  # as on GPUs
    for module in (fused_layers, preprocess):
        monkeypatch.setattr(module, "by_triton", lambda device: True)
    net = create_model(model, "random", precision="bf16", padding="invariant")
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
            levels_on.cache_clear()
            _mean_and_std.cache_clear()
    assert packed.device.type == "cuda" and packed.shape[2] == 6
    assert not crossings.found


@needs_gpu
def test_recordings_repeat_the_function(generator: torch.Generator) -> None:
    """The shapes take turns six times, so that all but the first runs of each are replayed."""
    net = create_model("shapes-tiny", device="cuda", padding="invariant")
    predictor = Predictor(net, "cuda", top=20)
    for _ in range(6):
        for sizes in ([(96, 128)] * 3, [(96, 128), (64, 160)], [(64, 64)]):
            images = draw_images(sizes, generator)
            shown = torch.tensor(sizes)
            began = time.perf_counter()
            waiting = [predictor.submit(images, shown) for _ in range(2)]
            with torch.inference_mode():
                expected = postprocess(net(*batch_images(images, "cuda")), shown.cuda(), 20)
            for pending in waiting:
                found = pending.result()
                assert torch.allclose(found.scores, expected.scores.cpu(), atol=1e-4)
                assert torch.allclose(found.boxes, expected.boxes.cpu(), atol=0.05)
            took = time.perf_counter() - began
            computed = [pending.device_seconds or 0.0 for pending in waiting]
            assert min(computed) > 0 and sum(computed) < took
