"""Rules for boxes choose what a slow reference, and torchvision's own functions, choose."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms, nms

from pipeline.stages import box_overlaps
from pipeline.stages.box_overlaps import NEAR, count_near_duplicates
from pipeline.stages.box_rules import BoxRules, suppressed_boxes

Arrays = tuple[Any, Any, Any]


def random_image(rng: np.random.Generator, count: int) -> Arrays:
    """Scores, labels and boxes, many of which overlap. Whole pixels stay exact in fp32."""
    corners = rng.integers(0, 60, (count, 2))
    sides = rng.integers(0, 40, (count, 2))
    boxes = np.hstack([corners, corners + sides]).astype(np.float32)
    scores = np.sort(rng.choice(np.linspace(0, 1, 21), count))[::-1].astype(np.float32)
    return scores, rng.integers(0, 6, count), boxes


def reference(rules: BoxRules, image: Arrays, least: float) -> list[tuple[int, int]]:
    """The rules one after the other, box by box: (position, class)."""
    scores, labels, boxes = image
    own, new = dict(rules.thresholds), dict(rules.renamed)
    kept = []
    for at, label in enumerate(labels.tolist()):
        is_chosen = rules.classes is None or label in rules.classes
        width, height = (boxes[at, 2:] - boxes[at, :2]).tolist()
        reaches = scores[at] >= np.float32(own.get(label, least))
        if is_chosen and reaches and min(width, height) >= rules.min_size:
            kept.append((at, new.get(label, label)))
    for threshold, across in ((rules.nms, False), (rules.nms_across_classes, True)):
        if threshold is not None:
            better: list[tuple[int, int]] = []
            for at, label in kept:
                rivals = [other for other, kind in better if across or kind == label]
                if all(iou(boxes[at], boxes[other]) <= threshold for other in rivals):
                    better.append((at, label))
            kept = better
    return kept


def iou(a: Any, b: Any) -> float:
    """The IoU of two boxes in fp32; 0 where none has an area."""
    sides = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
    both = np.float32(max(sides[0], 0) * max(sides[1], 0))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return float(both / union) if union > 0 else 0.0


def selected(rules: BoxRules, image: Arrays, least: float = 0.0) -> list[tuple[int, int]]:
    return list(zip(*(one.tolist() for one in rules.select(*image, least)), strict=True))


RULES = [
    BoxRules(),
    BoxRules(classes=(1, 3, 9)),
    BoxRules(thresholds=((2, 0.9), (5, 0.1))),
    BoxRules(renamed=((0, 1), (4, 1))),
    BoxRules(min_size=17),
    BoxRules(nms=0.5),
    BoxRules(nms=0.0),
    BoxRules(nms_across_classes=0.3),
    BoxRules((0, 1, 2, 3), ((0, 0.25), (1, 0.6)), ((0, 1), (3, 2)), 5.0, 0.6, 0.8),
]


@pytest.mark.parametrize("rules", RULES)
def test_rules_choose_what_a_slow_reference_chooses(rules: BoxRules, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for count in (0, 1, 2, 30, 100):
        image = random_image(rng, count)
        least = float(rng.choice([0.0, 0.35]))
        assert selected(rules, image, least) == reference(rules, image, least)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_suppression_by_class_is_that_of_torchvision(threshold: float, seed: int) -> None:
    """Its way to keep classes apart is exact for whole pixels."""
    scores, labels, boxes = random_image(np.random.default_rng(seed), 100)
    scores = np.linspace(1, 0, 100, dtype=np.float32)  # of equal scores it may take another first
    tensors = map(torch.from_numpy, (boxes, scores, labels))
    kept, _ = BoxRules(nms=threshold).select(scores, labels, boxes)
    assert kept.tolist() == sorted(batched_nms(*tensors, threshold).tolist())


def test_odd_boxes_are_suppressed_as_by_torchvision(seed: int) -> None:
    """Imports hold boxes without an area, from right to left, or without finite corners."""
    rng = np.random.default_rng(seed)
    boxes = rng.integers(0, 9, (60, 4)).astype(np.float32)
    boxes[rng.integers(0, 60, 9), rng.integers(0, 4, 9)] = rng.choice([np.nan, np.inf, -np.inf], 9)
    ranks = torch.arange(60, 0, -1, dtype=torch.float32)
    for threshold in (0.0, 0.2, 0.6):
        rules = BoxRules(nms_across_classes=threshold)
        kept, _ = rules.select(ranks.numpy(), np.zeros(60, np.int64), boxes)
        assert kept.tolist() == sorted(nms(torch.from_numpy(boxes), ranks, threshold).tolist())


@pytest.mark.parametrize("rules", [BoxRules(nms=0.4), BoxRules(nms=0.7, nms_across_classes=0.5)])
def test_many_images_are_as_each_alone(
    rules: BoxRules, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_overlaps, "AT_ONCE", 100)
    rng = np.random.default_rng(seed)
    images = [random_image(rng, count) for count in (3, 0, 40, 1, 17, 0)]
    lengths, expected, first = [len(scores) for scores, _, _ in images], [], 0
    for image in images:
        kept = {at for at, _ in reference(rules, image, 0.0)}
        expected += [first + at for at in range(len(image[0])) if at not in kept]
        first += len(image[0])
    _, labels, boxes = (np.concatenate(arrays) for arrays in zip(*images, strict=True))
    assert suppressed_boxes(rules, np.array(lengths), labels, boxes).tolist() == expected


def test_near_duplicates_are_counted_within_images(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_overlaps, "AT_ONCE", 50)
    rng = np.random.default_rng(seed)
    images = [random_image(rng, count) for count in (30, 0, 60, 1)]
    near = [
        (labels[i] == labels[j])
        for _, labels, boxes in images
        for i in range(len(boxes))
        for j in range(i)
        if iou(boxes[i], boxes[j]) > NEAR
    ]
    _, labels, boxes = (np.concatenate(arrays) for arrays in zip(*images, strict=True))
    found = count_near_duplicates(np.array([30, 0, 60, 1]), labels, boxes)
    assert (found.same_class, found.any_class) == (sum(near), len(near))
