"""The five published variants equal transformers' on the same random weights."""

import pytest
import torch

from model.checkpoint import load_state
from model.deformable_detr import DeformableDetr
from model.zoo import MODELS
from tests.model.peer import VARIANTS, padded_batch, peer

SIZES = [(180, 250), (250, 141), (97, 223)]


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_boxes_equal_transformers_on_a_padded_batch(name: str) -> None:
    theirs = peer(name)
    ours = DeformableDetr(MODELS[name].config()).eval()
    load_state(ours, theirs.state_dict(), name)
    values, mask = padded_batch(SIZES)
    with torch.inference_mode():
        expected = theirs(pixel_values=values, pixel_mask=mask)
        found = ours(values, mask)
    assert found.pred_logits.std() > 1e-2  # random weights, but not without effect
    torch.testing.assert_close(found.pred_logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=1e-4, rtol=0)


THIN = [(20, 500), (12, 333), (9, 480)]  # levels of height 1, where only the width is halved


@pytest.mark.parametrize(
    ("name", "sizes"),
    [*((name, SIZES) for name in [*VARIANTS, "shapes-tiny"]), ("shapes-tiny", THIN)],
)
def test_invariant_padding_gives_a_picture_what_it_gives_alone(
    name: str, sizes: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    net = DeformableDetr(MODELS[name].config(), padding="invariant").eval()
    values, mask = padded_batch(sizes)
    with torch.inference_mode():
        batch = net(values, mask)
        for index, (height, width) in enumerate(sizes):
            alone = net(values[index : index + 1, :, :height, :width])
            for field in ("pred_logits", "pred_boxes"):
                together = getattr(batch, field)[index]
                torch.testing.assert_close(together, getattr(alone, field)[0], atol=1e-4, rtol=0)


def test_published_padding_is_not_neutral() -> None:
    torch.manual_seed(0)
    net = DeformableDetr(MODELS["deformable-detr"].config()).eval()
    values, mask = padded_batch(SIZES)
    with torch.inference_mode():
        together = net(values, mask).pred_logits[2]
        alone = net(values[2:, :, :97, :223]).pred_logits[0]
    assert (together - alone).abs().max() > 1e-3
