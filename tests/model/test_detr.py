"""DETR in padded batches: positions are looked up, and are those that would be computed."""

from dataclasses import replace

import pytest
import torch

from model.config import detr
from model.detr import Detr
from model.padding import valid_mask
from model.zoo import build, prepare
from tests.support.parameters import others_slow


def small(precision: str) -> Detr:
    torch.manual_seed(0)
    config = replace(detr(), d_model=64, encoder_layers=1, decoder_layers=1, num_queries=9)
    net = prepare(build(config, "invariant").eval(), precision)
    assert isinstance(net, Detr)
    return net


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_positions_that_are_looked_up_have_the_bits_of_computed_ones(precision: str) -> None:
    net = small(precision)
    for height, width in ((25, 34), (34, 25), (1, 9), (42, 25), (70, 3)):
        sizes = [
            [height, width],
            [1, 1],
            [height, 1],
            [1, width],
            [-(-height // 2), -(-width // 3)],
        ]
        area = torch.tensor(sizes)
        cells = valid_mask(area, torch.empty(len(area), 1, height, width))
        within = cells.flatten(1)[..., None]
        looked_up, computed = net._looked_up(area, cells), net._position(cells)
        assert looked_up.shape == computed.shape and looked_up.dtype == computed.dtype
        assert torch.equal(looked_up * within, computed * within)
        assert looked_up.isfinite().all()
    assert len(net.kept_positions()) == 2  # one for canvases of up to 64 cells, and one for 128


@pytest.mark.parametrize("precision", others_slow(["fp32", "bf16"]))
def test_predictions_of_padded_batches_keep_their_bits(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positions of the padding differ, and nothing reads them."""
    net = small(precision)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(3, 3, 96, 128, generator=generator)
    valid = torch.tensor([[96, 128], [40, 70], [1, 1]])
    with torch.inference_mode():
        found = net(pixels, valid=valid)
        monkeypatch.setattr(net, "_looked_up", lambda _, cells: net._position(cells))
        expected = net(pixels, valid=valid)
    assert torch.equal(found.pred_logits, expected.pred_logits)
    assert torch.equal(found.pred_boxes, expected.pred_boxes)
