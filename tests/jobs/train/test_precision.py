"""The default precision gives the boxes of fp32, within stated bounds, on held-out scenes."""

import pytest
import torch

from jobs.train.data import HeldOutScenes
from jobs.train.train import evaluate
from model.deformable_detr import DeformableDetr
from model.detector import Detections
from model.postprocess import best_pairs
from model.preprocess import batch_images
from model.zoo import create_deformable_detr, resolved_precision

CONFIDENT = 0.5
AUTO_IS_FP32 = resolved_precision("auto", "cpu") == "fp32"

pytestmark = pytest.mark.skipif(AUTO_IS_FP32, reason="this CPU has no bf16: the default is fp32")


@pytest.fixture(scope="module")
def nets() -> tuple[DeformableDetr, DeformableDetr]:
    """shapes-tiny in fp32, and in the default precision."""
    precise, default = (
        create_deformable_detr("shapes-tiny", precision=name) for name in ("fp32", "auto")
    )
    return precise, default


@pytest.mark.slow
def test_confident_boxes_move_by_less_than_half_a_pixel(
    nets: tuple[DeformableDetr, DeformableDetr],
) -> None:
    """The median box moves by less than a twentieth of a pixel."""
    moved = measure_movements(60, nets)
    assert len(moved) > 200
    assert moved[-1] < 0.5
    assert moved[len(moved) // 2] < 0.05


@pytest.mark.slow
def test_few_of_a_thousand_boxes_move_farther(
    nets: tuple[DeformableDetr, DeformableDetr],
) -> None:
    moved = measure_movements(300, nets)
    middle, hundredth, farther = (
        moved[len(moved) // 2],
        moved[int(0.99 * len(moved))],
        [pixels for pixels in moved if pixels >= 0.5],
    )
    print(f"{len(moved)} boxes: {middle:.3f} pixels in the median, one in a hundred by more than")
    print(f"{hundredth:.3f}, and half a pixel or more: {farther}")
    assert hundredth < 0.3
    assert len(farther) <= 0.002 * len(moved)


def measure_movements(
    scenes: int, nets: tuple[DeformableDetr, DeformableDetr], device: str = "cpu"
) -> list[float]:
    """Measure movements in this many held-out scenes; sorted, in pixels of the model's input."""
    held_out = HeldOutScenes(scenes, nets[0].config.resize)
    moved = []
    for index in range(scenes):
        sample = held_out[index]
        seen = torch.tensor([sample.image.shape[:2]], device=device)
        with torch.inference_mode():
            inputs = batch_images([sample.image], device)
            expected, found = (best_pairs(net(*inputs), seen) for net in nets)
        moved += measure_movements_in_image(expected, found)
    return sorted(moved)


def measure_movements_in_image(expected: Detections, found: Detections) -> list[float]:
    """Measure how far each confident box is from the nearest of its class, by its worst side."""
    distances = []
    for score, label, box in zip(
        expected.scores[0], expected.labels[0], expected.boxes[0], strict=True
    ):
        if score >= CONFIDENT:
            same = found.boxes[0][found.labels[0] == label]
            distances.append(float((same - box).abs().amax(1).min()))
    return distances


@pytest.mark.slow
def test_average_precision_stays_within_two_tenths_of_a_point(
    nets: tuple[DeformableDetr, DeformableDetr],
) -> None:
    precise, default = (
        evaluate(net, HeldOutScenes(300, net.config.resize), "cpu")["AP"] for net in nets
    )
    print(f"AP {precise:.4f} in fp32, {default:.4f} by default")
    assert abs(default - precise) < 0.002
