"""Fixtures of tests of kernels."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill the memory of `torch.empty` with NaN, so that an output that is not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def rounded_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's interpreter compute in bf16 as GPUs do."""
    from tests.support.interpreter import round_bf16

    round_bf16(monkeypatch)
