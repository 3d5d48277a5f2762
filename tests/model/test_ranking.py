"""Scores are ranked in the same order on every device, also where scores are equal."""

import pytest
import torch

from model.ranking import largest

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_the_order_is_that_of_a_stable_sort(device: str, generator: torch.Generator) -> None:
    """Many scores are equal, and both signs occur. Python's own sort, the reference, is stable."""
    scores = torch.randint(-9, 9, (3, 700), generator=generator).float() / 4
    found = largest(scores.to(device), 300).cpu()
    for row, positions in zip(scores.tolist(), found.tolist(), strict=True):
        assert positions == sorted(range(700), key=lambda at: -row[at])[:300]


@pytest.mark.parametrize("device", DEVICES)
def test_unequal_scores_are_ranked_as_torch_ranks_them(
    device: str, generator: torch.Generator
) -> None:
    ranks = [torch.randperm(5000, generator=generator) for _ in range(4)]
    scores = (torch.stack(ranks).float() / 7 - 300).to(device)
    assert torch.equal(largest(scores, 300), scores.topk(300, dim=1).indices)


@pytest.mark.parametrize("device", DEVICES)
def test_zeros_infinities_and_nan_are_ranked(device: str) -> None:
    numbers = [0.0, -0.0, float("-inf"), float("nan"), float("inf"), -1e-45, 1e-45, -0.0]
    found = largest(torch.tensor([numbers], device=device), len(numbers))
    assert found.tolist() == [[3, 4, 6, 0, 1, 7, 5, 2]]


def test_half_precision_is_ranked_too() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert largest(torch.tensor([[1.0, 3.0, 2.0, 3.0]], dtype=dtype), 3).tolist() == [[1, 3, 2]]


def test_scores_that_require_gradients_are_ranked_too() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0]], requires_grad=True)
    assert largest(scores, 2).tolist() == [[1, 2]]
