"""Detectors compute canaries among the images of a run, and report them beside its rows."""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.schema import DETECTED, PREPARED
from pipeline.stages.canaries import Answer, Canary, CanaryCheck, CanaryRunner
from pipeline.stages.detect import Detector, DetectorSpec
from pipeline.stages.recovery import Image, Outcome
from pipeline.stages.stage import stage
from pipeline.stages.staged import read_staging, remove_blocks_with
from pipeline.stages.tasks import receipts_of_table, stage_block
from tests.support.blocks import block

CANARY = Canary(np.zeros((8, 8, 3), np.uint8), (8, 8))


def outcome(seconds: float = 1.0) -> Outcome:
    boxes = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    return Outcome(np.array([0.9, 0.1], np.float32), np.array([3, 4], np.int32), boxes, seconds)


def test_answers_travel_bit_for_bit() -> None:
    numbers = np.nextafter(np.float32(0.1), np.float32(1)) * np.ones((2, 5), np.float32)
    answer = Answer(np.array([1, 90], np.int32), numbers)
    check = CanaryCheck(
        "host, process 1 ab", "fp32 on cpu", "d", (answer, Answer.from_json({"error": "e"}))
    )
    again = CanaryCheck.from_text(check.to_text())
    assert again.answers[0].numbers.tobytes() == numbers.tobytes()
    assert again.answers[0].equals(answer) and again.answers[1].error == "e"
    assert not Answer(answer.labels, np.nextafter(numbers, np.float32(1))).equals(answer)


def test_canaries_take_a_small_share_of_the_time() -> None:
    """The first check may compile kernels, so the second comes soon nevertheless."""
    now = 0.0
    runner = CanaryRunner([CANARY, CANARY], "host, process 1 ab", "fp32 on cpu", lambda: now)
    due: list[float] = []
    for now in np.arange(0, 1000, 5.0).tolist():
        if images := runner.take_due_images():
            assert runner.take_due_images() == []  # another call, at the same time
            due.append(now)
            runner.record([outcome(20.0 if now == 0 else 1.0)] * len(images))
    assert due[:4] == [0, 60, 160, 260]  # 2 seconds of 100


def test_no_call_returns_before_the_first_check() -> None:
    runner = CanaryRunner([CANARY], "host, process 1 ab", "fp32 on cpu")
    began, go_on = threading.Event(), threading.Event()

    def detect(images: Sequence[Image]) -> list[Outcome]:
        began.set()
        assert go_on.wait(30) and [image.least_score for image in images] == [0.0]
        return [outcome()]

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(runner.compute_first, detect) for _ in range(2)]
        assert began.wait(30) and not any(call.done() for call in calls)
        go_on.set()
        assert [call.result(30) for call in calls] == [None, None]
    texts = [CanaryCheck.from_text(runner.text() or "") for _ in range(2)]
    assert [len(text.answers) for text in texts] == [1, 0]
    runner.record([outcome()])
    assert not CanaryCheck.from_text(runner.text() or "").answers  # nothing is new
    assert CanaryRunner([], "host, process 1 ab", "fp32 on cpu").text() is None


def test_canaries_are_computed_with_rows_and_never_are_rows() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    row = {"image_id": "a", "shard": "s", "index_in_shard": 0, "status": "ok", "width": 96}
    row |= {"height": 64, "pixels": pixels.tobytes(), "rows": 64, "columns": 96}
    canaries = (Canary(pixels, (64, 96)), CANARY)
    spec = DetectorSpec(
        "shapes-tiny", "random", "cpu", "fp32", 0.9, None, "canaries", canaries=canaries
    )
    table = pa.Table.from_pylist([row, row], schema=PREPARED)
    detector = Detector(spec)
    first, second = detector(table), detector(table)
    assert detector(PREPARED.empty_table()).schema == first.schema == DETECTED
    assert first["image_id"].to_pylist() == ["a", "a"]
    texts = first["canaries"].to_pylist()
    assert texts[1] is None
    check = CanaryCheck.from_text(texts[0])
    # All boxes count, whatever the threshold of the run. Random weights reach no high score.
    assert len(check.answers) == 2 and all(len(answer.labels) for answer in check.answers)
    assert first["boxes"].to_pylist() == [[], []]
    again = CanaryCheck.from_text(second["canaries"].to_pylist()[0])
    assert (again.answers, again.digest) == ((), check.digest)
    spec_of_low = DetectorSpec("shapes-tiny", "random", "cpu", "fp32", 0.0, None, "canaries")
    (boxes, _) = Detector(spec_of_low)(table)["boxes"].to_pylist()
    scores = np.array([box["score"] for box in boxes], np.float32)
    assert scores.tobytes() == check.answers[0].numbers[:, 0].tobytes()


def with_canaries(shard: str, text: str | None) -> pa.Table:
    rows = block(shard, [0, 1], size=2).to_pylist()
    rows[0]["canaries"] = text
    return pa.Table.from_pylist(rows, schema=DETECTED)


@pytest.mark.parametrize("texts", [("one", "two"), ("one", "one"), (None, "two"), (None, None)])
def test_texts_are_read_back_from_staged_blocks_once_each(
    tmp_path: Path, texts: tuple[str | None, str | None]
) -> None:
    staging, known = str(tmp_path / "staging"), sorted({text for text in texts if text})
    for shard, text in zip(("a", "b"), texts, strict=True):
        assert stage(with_canaries(shard, text), staging).canaries == (
            () if text is None else (text,)
        )
    found = read_staging(staging)
    assert sorted(found.canaries) == known and found.images == 4


def test_blocks_are_removed_by_their_texts(tmp_path: Path) -> None:
    staging = str(tmp_path / "staging")
    for shard, text in {"a": "one", "b": "two", "c": None, "d": "one"}.items():
        stage(with_canaries(shard, text), staging)
    assert remove_blocks_with(staging, {"one", "three"}) == 2
    found = read_staging(staging)
    assert (found.shards.to_pylist(), found.canaries) == (["b", "c"], ("two",))


def test_receipts_carry_texts(tmp_path: Path) -> None:
    (receipt,) = receipts_of_table(stage_block(with_canaries("a", json.dumps({})), str(tmp_path)))
    assert (receipt.canaries, receipt.gpu) == (("{}",), ())
