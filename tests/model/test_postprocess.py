"""What the model predicts becomes boxes, or a failure that can be seen."""

import pytest
import torch

from model.postprocess import best_pairs
from model.predictions import Predictions

SIZES = torch.tensor([[480, 640], [100, 50], [7, 9]])


def predictions(generator: torch.Generator) -> Predictions:
    """Three images with 30 queries and 5 classes."""
    logits = torch.randn(3, 30, 5, generator=generator)
    return Predictions(logits, torch.rand(3, 30, 4, generator=generator))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["pred_logits", "pred_boxes"])
def test_an_output_that_is_not_finite_has_no_scores_and_its_neighbours_keep_theirs(
    field: str, value: float, generator: torch.Generator
) -> None:
    """One number anywhere is enough, also in a query that is not among the best."""
    output = predictions(generator)
    expected = best_pairs(output, SIZES, top=5)
    tensor = getattr(output, field)
    query = int(torch.randint(30, (1,), generator=generator))
    tensor[1, query, 2] = value
    found = best_pairs(output, SIZES, top=5)
    assert found.scores[1].isnan().all()
    for image in (0, 2):
        assert torch.equal(found.scores[image], expected.scores[image])
        assert torch.equal(found.labels[image], expected.labels[image])
        assert torch.equal(found.boxes[image], expected.boxes[image])
