"""`--seeds` repeats the tests of random inputs, and `--seed` gives the same inputs again."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
# One draws from a seed, one lets Hypothesis draw, and the others take no random inputs.
FILES = ["tests/jobs/accounting/test_timeline.py", "tests/jobs/exports/test_names.py"]


def test_only_tests_of_random_inputs_are_repeated() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-v", "--seeds", "2"]
    command += ["--seed", "7", *FILES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tests = [line for line in done.stdout.splitlines() if "<Function" in line]
    assert len(tests) == 4
    assert sum("seed=7" in line for line in tests) == sum("seed=8" in line for line in tests) == 2


def test_all_processes_draw_from_the_seed_that_is_printed(request: pytest.FixtureRequest) -> None:
    config = request.config
    if hasattr(config, "workerinput"):  # of pytest-xdist
        assert config.option.seed == config.workerinput["seed"]


def test_a_seed_gives_inputs_and_weights(seed: int, generator: torch.Generator) -> None:
    weights = torch.nn.Linear(3, 4).weight
    drawn = torch.rand(5, generator=generator)
    again = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    assert torch.equal(torch.nn.Linear(3, 4).weight, weights)
    assert torch.equal(torch.rand(5, generator=again), drawn)
