"""Detectors that get one image at a time: what they return is checked, ordered and scaled."""

from typing import Any

import numpy as np
import pytest
import torch

from model.detector import BatchDetector
from model.image_detector import ContractBroken, Found, OneByOne
from model.preprocess import form_batch
from model.resize import ResizeRule

IMAGE = torch.zeros(40, 60, 3, dtype=torch.uint8)
BOX = [[1.0, 2.0, 30.0, 20.0]]


class Fixed:
    """Returns the same for every image, or raises it."""

    labels = ("", "cat", "dog")

    def __init__(self, found: Any):
        self.found = found

    def detect(self, image: np.ndarray) -> Found:
        assert image.dtype == np.uint8 and image.shape == (40, 60, 3)
        if isinstance(self.found, BaseException):
            raise self.found
        return self.found


def detect(found: Any, displayed: tuple[int, int] = (40, 60), top: int = 100) -> Any:
    detector: BatchDetector = OneByOne(Fixed(found), top, "python:a:b")
    pixels, valid, sources = form_batch([IMAGE], detector)
    return detector.submit(pixels, valid, torch.tensor([displayed]), sources).result()


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_the_best_come_first_and_equal_scores_keep_their_order(kind: Any) -> None:
    boxes = [[n, 0, n + 1, 1] for n in range(4)]
    found = detect((kind(boxes), kind([0.2, 0.9, 0.2, 0.5]), kind([1, 2, 2, 1])), top=3)
    assert found.scores.tolist() == [pytest.approx([0.9, 0.5, 0.2])]
    assert found.labels.tolist() == [[2, 1, 1]]
    assert found.boxes[0, :, 0].tolist() == [1, 3, 0]
    assert found.scores.dtype == found.boxes.dtype == torch.float32


def test_boxes_are_in_the_pixels_of_the_displayed_image() -> None:
    found = detect((BOX, [0.5], [1]), displayed=(80, 240))
    assert found.boxes.tolist() == [[[4.0, 4.0, 120.0, 40.0]]]


def test_a_detector_may_say_how_images_are_resized() -> None:
    detector = Fixed((BOX, [0.5], [1]))
    assert OneByOne(detector, 100, "").resize.target_size(123, 45) == (123, 45)
    vars(detector)["resize"] = ResizeRule(32, 64)
    assert OneByOne(detector, 100, "").resize.target_size(40, 60) == (32, 48)


@pytest.mark.parametrize("nothing", [([], [], []), (np.empty((0, 4)), np.empty(0), np.empty(0))])
def test_there_may_be_no_boxes(nothing: Any) -> None:
    assert detect(nothing).boxes.shape == (1, 0, 4)


def test_boxes_that_lie_outside_by_rounding_end_at_the_border() -> None:
    found = detect(([[-0.5, 0, 60.5, 40.0]], [1.0], [2]))
    assert found.boxes.tolist() == [[[0, 0, 60, 40]]]


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (None, "must return boxes, scores and labels"),
        ((BOX, [0.5]), "must return boxes, scores and labels"),
        ((BOX, ["much"], [1]), "must return boxes, scores and labels"),
        (([[1, 2, 3]], [0.5], [1]), r"are \(1, 3\), \(1,\), \(1,\)"),
        ((BOX, [0.5, 0.6], [1]), r"are \(1, 4\), \(2,\), \(1,\)"),
        ((BOX, [[0.5]], [1]), r"\(1, 1\)"),
        ((BOX, [1.5], [1]), "a score that is not from 0 to 1"),
        ((BOX, [float("nan")], [1]), "a score that is not from 0 to 1"),
        ((BOX, [0.5], [3]), "a label that is none of its 3 classes"),
        ((BOX, [0.5], [-1]), "a label that is none of its 3 classes"),
        (([[1, 2, float("inf"), 4]], [0.5], [1]), "a number that is not finite"),
        (([[30, 2, 1, 20]], [0.5], [1]), "corners are in the wrong order"),
        ((BOX, [0.5], [0.7]), "labels must be whole numbers"),
        (([[1, 2, 62, 20]], [0.5], [1]), "a box outside the image"),
        (([[-3, 2, 6, 20]], [0.5], [1]), "a box outside the image"),
    ],
)
def test_what_is_no_detections_is_named(found: Any, problem: str) -> None:
    with pytest.raises(ContractBroken, match=f"^python:a:b: .*{problem}"):
        detect(found)


def test_halves_are_read_and_the_image_cannot_be_changed() -> None:
    half = torch.tensor([0.5], dtype=torch.bfloat16)
    assert detect((torch.tensor(BOX).bfloat16(), half, torch.tensor([1]))).scores.tolist() == [
        [0.5]
    ]

    class Painting(Fixed):
        def detect(self, image: np.ndarray) -> Found:
            image[0, 0] = 99
            return super().detect(image)

    with pytest.raises(RuntimeError, match="read-only"):
        OneByOne(Painting((BOX, [0.5], [1])), 100, "").submit(
            IMAGE[None], None, torch.tensor([[40, 60]])
        )


def test_errors_of_other_types_are_named_too() -> None:
    with pytest.raises(RuntimeError, match=r"^python:a:b: KeyError: 'cats'"):
        detect(KeyError("cats"))
    with pytest.raises(RuntimeError, match=r"^python:a:b: SystemExit: 3"):
        detect(SystemExit(3))
    with pytest.raises(KeyboardInterrupt):  # by the user, whose terminal this may be
        detect(KeyboardInterrupt())
    with pytest.raises(MemoryError):
        detect(MemoryError())
    with pytest.raises(torch.OutOfMemoryError):
        detect(torch.OutOfMemoryError())
