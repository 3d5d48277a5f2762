"""Ways to compute sums and norms behind products are checked, and the fastest one is chosen."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.bench import op
from jobs.bench.gpu import product_choices
from jobs.bench.gpu.collect import Tables, collect
from jobs.bench.gpu.context import Context, Wrong
from jobs.bench.gpu.environment import describe_environment
from jobs.bench.gpu.journal import CHOICE, ENVIRONMENT
from jobs.bench.gpu.product_choices import choose, runs_of
from model.ops import launches, ways
from model.ops.launches import NORM_CANDIDATES, NORMS
from model.ops.ways import NORM, WAYS
from tests.support.gpu_paths import take_paths_of_gpus

pytest.importorskip("triton")
from tests.support.interpreter import round_bf16


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A context on a CPU that computes as a GPU."""
    take_paths_of_gpus(monkeypatch)
    round_bf16(monkeypatch)
    monkeypatch.setattr(op, "LEVELS", ((5, 7), (3, 4)))
    monkeypatch.setattr(product_choices, "BATCH", 2)
    monkeypatch.setattr(product_choices, "SECONDS", 0.0)
    return Context("choices", tmp_path, "cpu", True, time.monotonic() + 60)


@pytest.mark.slow
def test_launches_and_ways_are_timed_and_chosen(context: Context, tmp_path: Path) -> None:
    choose(context, "9.0")
    launch, way = context.journal.records()
    assert launch["kind"] == way["kind"] == CHOICE
    assert (launch["what"], way["what"]) == (NORMS, NORM)
    assert len(launch["seconds"]) == len(NORM_CANDIDATES) and set(way["seconds"]) == set(WAYS[NORM])
    assert min(launch["seconds"].values()) in way["seconds"].values()
    assert way["chosen"] == min(way["seconds"], key=way["seconds"].__getitem__)
    tables = Tables(*(tmp_path / name for name in ("rows.csv", "launches.json", "ways.json")))
    tables.launches.write_text(launches.TABLE.read_text())
    tables.ways.write_text(ways.TABLE.read_text())
    environment = describe_environment("cpu") | {"tiny": False}
    context.write("", ENVIRONMENT, **environment)
    assert NORM in collect(tmp_path, tables)
    assert ways.read_ways(tables.ways)["9.0"][NORM] == way["chosen"]
    assert launches.read_table(tables.launches)["9.0"][NORMS] in NORM_CANDIDATES


@pytest.mark.parametrize(("count", "inputs", "placed"), product_choices.PRODUCTS)
def test_a_wrong_kernel_is_not_timed(
    count: int, inputs: int, placed: bool, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty(*arguments: Any, **launch: int) -> Any:
        return [torch.zeros(2, 47, 256)] * (1 + placed)

    monkeypatch.setattr("model.ops.linear_norm.linear_add_norm", empty)
    with pytest.raises(Wrong, match=f"{NORM}, {inputs} inputs, Launch"):
        runs_of(inputs, placed, "cpu")
