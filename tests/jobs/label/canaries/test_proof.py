"""A run is proven where each of its detectors gives for the canaries what was recorded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.label.canaries.comparison import are_close, count_found, difference
from jobs.label.canaries.proof import CanaryDeviation, Proof
from jobs.output import paths
from jobs.output.canaries import read_canary_reference
from pipeline.schema import Receipt
from pipeline.stages.canaries import Answer, CanaryCheck
from tests.support.canaries import (
    AVX2,
    AVX512,
    FOUND,
    IMAGES,
    KNOWN,
    LABELS,
    OBJECTS,
    answer,
    canaries,
    check,
    check_of,
    moved,
)

RUN, LATER = "20260101T000000Z-aaaaaa", "20260102T000000Z-aaaaaa"


def proof_of(*checks: CanaryCheck, known: CanaryCheck | None = KNOWN) -> Proof:
    proof = Proof(canaries(known), LABELS)
    proof.add([one.to_text() for one in checks])
    assert proof.unproven_texts() == set()
    return proof


def last_bit_changed() -> CanaryCheck:
    """As `check`, but the lowest score of the first image is the next number."""
    first, second = check().answers
    numbers = first.numbers.copy()
    numbers[-1, 0] = np.nextafter(numbers[-1, 0], np.float32(1))
    return check_of([Answer(first.labels, numbers), second], AVX512, "host, process 2 cd")


def later(one: CanaryCheck) -> CanaryCheck:
    """What a detector reports with a later block: the answers were sent before."""
    return replace(one, answers=())


def test_equal_bits_prove_a_run() -> None:
    other = check(detector="other, process 9 ef")
    proof = proof_of(check(), other, later(other))
    assert proof.summary() == {
        "images": 2, "source": "canaries.json", "detectors": 2, "reference": [RUN]
    }  # fmt: skip


def test_one_bit_of_one_detector_is_found_and_the_detector_named() -> None:
    with pytest.raises(CanaryDeviation, match="host, process 2 deviates in fp32") as raised:
        proof_of(check(), last_bit_changed())
    text = str(raised.value)
    assert "the canary one.jpg differs from what run 20260101T000000Z-aaaaaa gave" in text
    assert "Nothing is published" in text and "--renew-canaries" in text and "\n" not in text


def test_a_receipt_that_deviates_ends_a_run_at_once() -> None:
    good, bad = (
        Receipt("a", ("s",), 1, 0, canaries=(one.to_text(),))
        for one in (check(), last_bit_changed())
    )
    receipts = Proof(canaries(), LABELS).checked(iter([good, bad, good]))
    assert next(receipts) is good
    with pytest.raises(CanaryDeviation):
        next(receipts)


def test_detectors_of_a_first_run_have_to_agree() -> None:
    with pytest.raises(CanaryDeviation, match="the detector of host, process 1 gave"):
        proof_of(check(), last_bit_changed(), known=None)


def test_a_first_run_has_to_find_the_objects() -> None:
    proof_of(check([FOUND[0], ()]), known=None)  # two of three
    with pytest.raises(CanaryDeviation, match="finds 1 of 3 annotated objects"):
        proof_of(check([FOUND[0][:1], ()]), known=None)


@pytest.mark.parametrize("known", [None, KNOWN])
def test_a_canary_that_fails_is_a_deviation(known: CanaryCheck | None) -> None:
    failed = Answer.from_json({"error": "detector_error: boxes are NaN"})
    with pytest.raises(CanaryDeviation, match="detector_error: boxes are NaN"):
        proof_of(check_of([failed, failed], AVX512, "host, process 1 ab"), known=known)


def test_other_devices_may_differ_within_a_tolerance() -> None:
    near, far = moved(FOUND, 0.3, 0.02), moved(FOUND, 12)
    proof_of(check(near, AVX2))
    with pytest.raises(CanaryDeviation, match="further than kinds of devices differ"):
        proof_of(check(far, AVX2))
    with pytest.raises(CanaryDeviation, match="further than"):
        proof_of(check(moved(FOUND, 0, 0.3), AVX2))
    with pytest.raises(CanaryDeviation, match="differs from"):  # they agree among themselves
        proof_of(check(near, AVX2), check(moved(near, 0.1), AVX2, "other, process 2 cd"))


def test_every_block_has_to_be_of_a_detector_that_is_known_to_be_right() -> None:
    """The block with the answers of a detector may be lost, if its process ends."""
    proof_of(check(), later(check(detector="host, process 7 ff")))
    proof_of(later(check(detector="host, process 7 ff")), check(), known=None)
    lost = later(last_bit_changed())
    with pytest.raises(CanaryDeviation, match="host, process 2 deviates"):
        proof_of(check(), lost)
    resumed = Proof(canaries(None), LABELS)
    resumed.add([lost.to_text()])  # nothing says yet what is right
    resumed.add([check().to_text()])
    with pytest.raises(CanaryDeviation):
        resumed.unproven_texts()
    with pytest.raises(CanaryDeviation, match="no detector computed the canaries"):
        proof_of()


@pytest.mark.parametrize("known", [None, check(FOUND, AVX2)])
def test_blocks_whose_answers_were_lost_are_unproven_and_no_deviation(
    known: CanaryCheck | None,
) -> None:
    proof, text = Proof(canaries(known), LABELS), later(check()).to_text()
    proof.add([text, check(FOUND, AVX2).to_text()])
    assert proof.unproven_texts() == {text} and not proof.is_complete()
    proof.add([check(detector="host, process 7 ff").to_text()])  # it computes alike
    assert proof.unproven_texts() == set() and proof.is_complete()


def test_a_score_on_either_side_of_a_threshold_is_no_difference() -> None:
    a, b = answer([(1, 0.51, 0, 0, 20, 20)]), answer([(1, 0.49, 0, 0, 20, 20)])
    assert are_close([difference(a, b)])
    assert not are_close([difference(a, answer([(2, 0.51, 0, 0, 20, 20)]))])  # of another class
    assert not are_close([difference(a, answer([]))])
    assert are_close([difference(answer([]), answer([]))])


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([(1, 0.9, 0, 0, 20, 20)], "only in last digits, or in boxes that are not confident"),
        (
            [(1, 0.9000001, 0, 0, 20, 20.00001)],
            "the confident boxes are in place, and differ: scores by up to 1.2e-07, corners in "
            "last digits",
        ),
        (
            [(1, 0.85, 0, 0, 20, 19)],
            "the confident boxes are in place, and differ: scores by up to 0.05, corners down to "
            "an IoU of 0.9500",
        ),
        ([(1, 0.9, 0, 0, 20, 9)], "2 of 2 confident boxes are elsewhere: least IoU 0.4500"),
    ],
)
def test_a_difference_says_what_differs(boxes: list[Any], said: str) -> None:
    found = difference(answer([(1, 0.9, 0, 0, 20, 20)]), answer(boxes)).as_text()
    assert found == said or found.startswith(f"{said}, scores by up to ")


def test_objects_of_other_classes_do_not_count() -> None:
    answers = list(map(answer, FOUND))
    assert count_found(answers, [image.objects for image in IMAGES], LABELS) == (3, 3)
    assert count_found(answers[:1], [OBJECTS], ("", "circle", "dog")) == (1, 1)


def test_records_add_computations_and_renewals_replace_all(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert read_canary_reference(output, "f00d") is None
    proof_of(check(), known=None).record(output, "f00d", RUN)
    first = read_canary_reference(output, "f00d")
    assert first is not None and first.images == IMAGES
    assert list(first.answers) == [AVX512] and first.runs == {AVX512: RUN}
    proof_of(check()).record(output, "f00d", LATER)
    assert not Path(output, paths.canaries("f00d", LATER)).exists()  # nothing is new
    proof_of(check(moved(FOUND, 0.1), AVX2)).record(output, "f00d", LATER)
    both = read_canary_reference(output, "f00d")
    assert both is not None and both.runs == {AVX512: RUN, AVX2: LATER}
    proof_of(check(moved(FOUND, 2)), known=None).record(output, "f00d", "20260103T000000Z-aaaaaa")
    renewed = read_canary_reference(output, "f00d")
    assert renewed is not None and list(renewed.answers) == [AVX512]
    assert read_canary_reference(output, "beef") is None


def test_a_run_that_ended_early_is_incomplete_until_the_answers_are_staged() -> None:
    proof = Proof(canaries(None), LABELS)
    assert not proof.is_complete()
    proof.add([later(check()).to_text()])
    assert not proof.is_complete()
    proof.add([check().to_text()])
    assert proof.is_complete()
