"""Ways to compute the trunk's convolutions are checked, and the fastest one is chosen."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.bench.gpu import trunk_choices
from jobs.bench.gpu.context import Context, Wrong
from jobs.bench.gpu.journal import CHOICE
from jobs.bench.gpu.trunk_choices import TRUNK, Convolution, choose, choose_from, stem_ways, ways_of
from model.ops.ways import BIAS, KERNEL, POINTWISE, RESIDUAL, STEM, WAYS
from model.preprocess import normalize
from tests.support.gpu_paths import Cudnn, take_paths_of_gpus
from tests.support.parameters import others_slow

pytest.importorskip("triton")
TINY = {
    RESIDUAL: Convolution(2, 16, 32, 5, 7),
    BIAS: Convolution(3, 16, 32, 5, 7, stride=2),
    POINTWISE: Convolution(1, 16, 32, 5, 7),
}


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A context on a CPU that computes as a GPU."""
    take_paths_of_gpus(monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(trunk_choices, "BATCH", 2)
    monkeypatch.setattr(trunk_choices, "SECONDS", 0.0)
    monkeypatch.setattr(trunk_choices, "IMAGE", (33, 30))
    for what, one in TINY.items():
        monkeypatch.setitem(trunk_choices.CONVOLUTIONS, what, (one,))
    return Context("choices", tmp_path, "cpu", True, time.monotonic() + 60)


@pytest.mark.parametrize("what", others_slow(TRUNK))
def test_all_ways_are_timed_and_one_is_chosen(what: str, context: Context) -> None:
    choose(context, what, "9.0")
    (record,) = context.journal.records()
    assert (record["kind"], record["what"], record["capability"]) == (CHOICE, what, "9.0")
    assert set(record["seconds"]) == set(WAYS[what])
    assert record["chosen"] == min(record["seconds"], key=record["seconds"].__getitem__)


@pytest.mark.parametrize("what", [RESIDUAL, BIAS])
def test_a_way_that_cudnn_refuses_is_not_chosen(
    what: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no engine")

    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", refuse)
    monkeypatch.setattr("model.fused_convolution.warn_once", lambda text: None)
    runs = ways_of(what, TINY[what], "cpu")
    assert list(runs) == [KERNEL]
    slow = {way: lambda: torch.zeros(()) for way in WAYS[what]}
    choose_from(context, what, "9.0", [(1, slow), (2, runs)])
    (record,) = context.journal.records()
    assert record["chosen"] == KERNEL and set(record["seconds"]) == {KERNEL}


def test_a_bias_that_is_read_as_a_whole_map_is_found(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Careless(Cudnn):
        def __call__(self, *arguments: Any) -> torch.Tensor:
            x, weight, z, *rest = arguments
            return super().__call__(x, weight, z[:, :1], *rest)

    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", Careless())
    with pytest.raises(Wrong, match=f"{BIAS} by cudnn"):
        ways_of(BIAS, TINY[BIAS], "cpu")


def test_a_wrong_stem_is_not_timed(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def upside_down_in_16_bits(pixels: torch.Tensor, *rest: Any) -> Any:
        return normalize(pixels.flip(1) if torch.bfloat16 in rest else pixels, *rest)

    monkeypatch.setattr("jobs.bench.gpu.trunk_choices.normalize", upside_down_in_16_bits)
    with pytest.raises(Wrong, match=STEM):
        stem_ways("cpu", (33, 30))
