"""Detectors of every kind keep the promises of a stage: a row an image, equal bits, a refusal."""

import random
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from model.description import Load
from model.detectors import describe, load
from model.errors import CheckpointError, UnknownName
from model.zoo import DTYPES, offered_precision
from pipeline.schema import PREPARED
from pipeline.stages.detect import CPU_THREADS, Detector, DetectorSpec
from tests.support.detectors import KINDS, model_of_kind
from tests.support.parameters import others_slow

SIZES = [(1, 1), (1, 64), (70, 1), (48, 64), (48, 64), (33, 90), (64, 48)]


def prepared(numbers: list[int]) -> pa.Table:
    """Images of these numbers, each a function of its number alone, and a row that failed."""
    rows = []
    for index, number in enumerate(numbers):
        height, width = SIZES[number % len(SIZES)]
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        rows.append(
            {
                "image_id": str(number), "shard": "s", "index_in_shard": index, "status": "ok",
                "width": width, "height": height, "rows": height, "columns": width,
                "pixels": pixels.tobytes(),
            }
        )  # fmt: skip
    rows.append({"image_id": "broken", "shard": "s", "index_in_shard": len(rows)})
    rows[-1] |= {"status": "undecodable", "error": "no image"}
    return pa.Table.from_pylist(rows, schema=PREPARED)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def make_detector(kind: str, folder: Path, precision: str = "fp32") -> Detector:
    model, weights = model_of_kind(kind, folder)
    described = describe(model, weights)
    sha256 = None if described.weights == "random" else described.weights
    spec = DetectorSpec(model, weights, "cpu", precision, 0.0, None, "kinds", sha256, CPU_THREADS)
    return Detector(spec)


SLOW = ("detr", "detr-dc5", "faster-rcnn", "faster-rcnn-v2")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in KINDS],
)
def test_an_image_has_a_row_and_equal_bits_in_any_company(kind: str, folder: Path) -> None:
    detector = make_detector(kind, folder)
    numbers = list(range(len(SIZES)))
    alone = [row for n in numbers for row in detector(prepared([n])).to_pylist()[:1]]
    # The processor of YOLOS makes very thin images 0 pixels wide, and refuses them.
    thin = {1, 2} if kind == "hf" else set()
    for number, row in enumerate(alone):
        expected = "detector_error" if number in thin else "ok"
        assert row["status"] == expected, row["error"]
    assert len(alone[3]["boxes"]) >= 3 and alone[3]["boxes"] != alone[4]["boxes"]
    shuffled = random.Random(1).sample(numbers, len(numbers))
    *together, broken = detector(prepared(shuffled)).to_pylist()
    assert broken["status"] == "undecodable"
    found = {row["image_id"]: row["boxes"] for row in together}
    assert found == {row["image_id"]: row["boxes"] for row in alone}
    for row in alone:
        for box in row["boxes"]:
            assert 0 <= box["x_min"] <= box["x_max"] <= row["width"]
            assert 0 <= box["y_min"] <= box["y_max"] <= row["height"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_precision_is_refused_or_gives_equal_bits_in_any_company(
    kind: str, precision: str, folder: Path
) -> None:
    model, weights = model_of_kind(kind, folder)
    offered = describe(model, weights).precisions
    assert "fp32" in offered
    assert offered_precision(model, offered, "auto") == ("auto" if "bf16" in offered else "fp32")
    if precision not in offered:
        with pytest.raises(UnknownName, match=f"has no precision '{precision}'"):
            offered_precision(model, offered, precision)
        return
    if precision == "int8":
        with pytest.raises(UnknownName, match="precision 'int8' is for GPUs"):
            load(model, Load(weights, None, "cpu", precision))
        return
    if offered == ("fp32",):
        return  # the test above computes in it
    detector = make_detector(kind, folder, precision)
    numbers = [3, 4, 5, 6]
    alone = [detector(prepared([number])).to_pylist()[0] for number in numbers]
    together = detector(prepared([4, 6, 3, 5])).to_pylist()[:4]
    assert {row["status"] for row in alone} == {"ok"}, [row["error"] for row in alone]
    # A random YOLOS takes some images for its number 0, which stands for no class.
    assert any(row["boxes"] for row in alone)
    found = {row["image_id"]: row["boxes"] for row in together}
    assert found == {row["image_id"]: row["boxes"] for row in alone}


@pytest.mark.parametrize("kind", others_slow(["python", "hf"]))
def test_other_files_than_the_command_found_are_refused(kind: str, folder: Path) -> None:
    model, _ = model_of_kind(kind, folder)
    spec = DetectorSpec(model, None, "cpu", "fp32", 0.0, None, "kinds", "0" * 64, CPU_THREADS)
    with pytest.raises(CheckpointError, match="replaced meanwhile, or it differs between nodes"):
        Detector(spec)(prepared([3]))
