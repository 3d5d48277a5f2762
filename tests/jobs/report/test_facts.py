"""The facts of a run's page, against counts that are made by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.output.catalog import committed_runs
from jobs.report import samples
from jobs.report.facts import Facts, gather_facts
from jobs.report.samples import BEST, DOUBTFUL
from tests.support.labelled import Box, Labelled, random_boxes, write_run

LABELS = ("", "circle", "tea cup", " ", "star")


def facts_of(folder: Path, images: list[Labelled], threshold: float = 0.0) -> Facts:
    output = write_run(folder / "out", images, LABELS, score_threshold=threshold)
    return gather_facts(output, committed_runs(output)[0], [], threshold)


def photos(count: int, boxes: int) -> list[Labelled]:
    return [Labelled(f"file:///l/{i}.jpg", random_boxes(i, boxes)) for i in range(count)]


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.3])
def test_thresholds_keep_what_a_run_with_them_would_have_kept(
    tmp_path: Path, threshold: float
) -> None:
    edge = [Box(1, np.float32(0.7).item(), 0, 0, 9, 9), Box(1, np.float32(0.3).item(), 0, 0, 9, 9)]
    images = [Labelled("edge.jpg", edge), Labelled("none.jpg"), *photos(20, 6)]
    images = [
        replace(one, boxes=[box for box in one.named_boxes() if box.score >= threshold])
        for one in images
    ]
    kept = facts_of(tmp_path, [*images, Labelled("bad.jpg", status="truncated")], threshold).kept
    assert [one.threshold for one in kept][1:] == [
        t / 10 for t in range(1, 10) if t / 10 > threshold
    ]
    assert kept[0].threshold == threshold
    for one in kept:
        least = np.float32(one.threshold)
        scores = [
            [box.score for box in image.named_boxes() if box.score >= least] for image in images
        ]
        assert one.boxes == sum(map(len, scores))
        assert one.empty == sum(not some for some in scores)


def test_classes_without_a_name_are_counted_apart_and_never_drawn(tmp_path: Path) -> None:
    boxes = [Box(label, 0.9 - label / 100, 0, 0, 50, 50) for label in (0, 1, 3)]
    facts = facts_of(tmp_path, [Labelled("file:///l/1.jpg", boxes)])
    assert [one.label for one in facts.classes] == ["circle"]
    assert (facts.unnamed, facts.sure, sum(facts.scores), facts.kept[0].boxes) == (2, 1, 1, 1)
    assert [[box["label"] for box in one.boxes] for one in facts.samples.images] == [["circle"]]
    assert [label for label, _ in facts.samples.by_class] == ["circle"]


def test_an_image_of_many_boxes_shows_the_best_and_counts_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "BOXES_DRAWN", 2)
    boxes = [Box(1, 0.9 - n / 10, 0, 0, 50, 50) for n in range(8)]  # 7 from 0.3 up
    facts = facts_of(tmp_path, [Labelled("file:///l/1.jpg", boxes)])
    (shown,) = facts.samples.images
    assert shown.count == 7
    assert [box["score"] for box in shown.boxes] == pytest.approx([0.9, 0.8])


def test_images_without_a_box_and_extremes_of_each_class_are_shown(tmp_path: Path) -> None:
    images = [*photos(30, 5), *(Labelled(f"file:///l/e{i}.jpg") for i in range(5))]
    faint = [Box(1, 0.2, 0, 0, 9, 9)]
    facts = facts_of(tmp_path, [*images, Labelled("file:///l/faint.jpg", faint)])
    assert facts.without_boxes == 6 + sum(
        all(box.score < 0.3 for box in image.named_boxes()) for image in images[:30]
    )
    empty = [one for one in facts.samples.images if one.kind == "empty"]
    assert len(empty) == 3 and not any(one.boxes for one in empty)
    by_label = {
        label: [
            box.score
            for image in images
            for box in image.named_boxes()
            if LABELS[box.label_id] == label and box.score >= 0.3
        ]
        for label in ("circle", "tea cup", "star")
    }
    for label, some in facts.samples.by_class:
        best = [one.boxes[0]["score"] for one in some if one.kind == BEST]
        doubtful = [one.boxes[0]["score"] for one in some if one.kind == DOUBTFUL]
        ordered = sorted(by_label[label])
        assert best == ordered[::-1][: len(best)] and doubtful == ordered[: len(doubtful)]
        assert len(best) == len(doubtful) == 2
        assert all(len(one.boxes) == 1 and one.boxes[0]["label"] == label for one in some)
    assert {label for label, _ in facts.samples.by_class} == set(by_label)


def test_the_only_box_of_a_class_is_shown_once(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, [Labelled("file:///l/1.jpg", [Box(4, 0.5, 0, 0, 9, 9)])])
    ((label, some),) = facts.samples.by_class
    assert (label, [one.kind for one in some]) == ("star", [BEST])


def test_a_run_of_failures_has_facts(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, [Labelled("file:///l/1.jpg", status="truncated")])
    assert (facts.classes, facts.without_boxes, facts.samples.images) == ([], 0, [])
    assert [(one.boxes, one.empty) for one in facts.kept] == [(0, 0)] * 10
