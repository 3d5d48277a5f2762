"""All published variants equal transformers' on the same random weights."""

from pathlib import Path

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from jobs.bench.peers import VARIANTS, peer
from model.checkpoint import load_state, save_weights
from model.deformable_detr import DeformableDetr
from model.inference import prepare_for_inference
from model.named import deformable_config, set_config
from model.predictions import Predictions
from model.zoo import build, create_deformable_detr, create_model, prepare
from tests.support.parameters import slow_but

# The other variants consist of parts of these.
FAST = "deformable-detr-with-box-refine-two-stage"
SIZES = [(180, 250), (250, 141), (97, 223)]


def padded_batch(sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Draw images of different sizes: values (B, 3, H, W), padded with 0, and mask (B, H, W)."""
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    values = torch.zeros(len(sizes), 3, height, width)
    mask = torch.zeros(len(sizes), height, width, dtype=torch.long)
    generator = torch.Generator().manual_seed(7)
    for index, (h, w) in enumerate(sizes):
        values[index, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[index, :h, :w] = 1
    return values, mask


def assert_same(found: Predictions, expected: Predictions, two_stage: bool) -> None:
    """Assert that logits (Q, K) and boxes (Q, 4) of one image are equal within 1e-4.

    A two-stage model ranks its queries by scores. Where two scores are nearly equal, rounding
    decides which comes first, so the order is not compared: each query is paired with the nearest
    query of the other side.
    """
    ours, theirs = (torch.cat((one.pred_logits, one.pred_boxes), -1) for one in (found, expected))
    assert ours.shape == theirs.shape
    if two_stage:
        _, partner = linear_sum_assignment(torch.cdist(theirs, ours, p=float("inf")).numpy())
        ours = ours[torch.from_numpy(partner)]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def predictions_of_image(batch: Predictions, index: int) -> Predictions:
    return Predictions(batch.pred_logits[index], batch.pred_boxes[index])


@pytest.mark.parametrize("name", slow_but([FAST], VARIANTS))
def test_logits_and_boxes_equal_transformers_on_a_padded_batch(name: str) -> None:
    theirs = peer(name)
    ours = build(set_config(name)).eval()
    load_state(ours, theirs.state_dict(), name)
    values, mask = padded_batch(SIZES)
    with torch.inference_mode():
        expected = theirs(pixel_values=values, pixel_mask=mask)
        as_published = ours(values, mask)
        prepared = prepare(ours, "fp32")(values, mask)
    assert as_published.pred_logits.std() > 1e-2  # the random weights have an effect
    peers = Predictions(expected.logits, expected.pred_boxes)
    for found in (as_published, prepared):
        for index in range(len(SIZES)):
            assert_same(
                predictions_of_image(found, index),
                predictions_of_image(peers, index),
                ours.config.two_stage,
            )


THIN = [(20, 500), (12, 333), (9, 480)]  # levels of height 1, where only the width is halved


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        *slow_but((), ((name, SIZES) for name in VARIANTS)),
        ("shapes-tiny", SIZES),
        ("shapes-tiny", THIN),
    ],
)
def test_invariant_padding_gives_an_image_the_same_result_as_alone(
    name: str, sizes: list[tuple[int, int]]
) -> None:
    net = create_model(name, "random", padding="invariant")
    values, mask = padded_batch(sizes)
    with torch.inference_mode():
        batch = net(values, mask)
        for index, (height, width) in enumerate(sizes):
            alone = net(values[index : index + 1, :, :height, :width])
            assert_same(
                predictions_of_image(batch, index),
                predictions_of_image(alone, 0),
                net.config.two_stage,
            )


@pytest.mark.slow
def test_published_padding_changes_results() -> None:
    torch.manual_seed(0)
    net = DeformableDetr(deformable_config("deformable-detr")).eval()
    values, mask = padded_batch(SIZES)
    with torch.inference_mode():
        together = net(values, mask).pred_logits[2]
        alone = net(values[2:, :, :97, :223]).pred_logits[0]
    assert (together - alone).abs().max() > 1e-3


def test_prepared_models_refuse_saving_training_and_casting(tmp_path: Path) -> None:
    net = create_deformable_detr("shapes-tiny", "random")
    for attempt in (
        lambda: save_weights(net, tmp_path / "net.safetensors", {}),
        lambda: net.train(),
        lambda: net.double(),
        lambda: prepare_for_inference(net, torch.float32),
    ):
        with pytest.raises(ValueError, match="training=True"):
            attempt()
