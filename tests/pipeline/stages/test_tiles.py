"""Tiles are prepared and detected as images of their own are."""

import importlib.util
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from PIL import Image

from model.predictor import Predictor
from pipeline.schema import ENCODED, PREPARED
from pipeline.stages import detect, recovery
from pipeline.stages.batcher import Batcher
from pipeline.stages.box_rules import BoxRules
from pipeline.stages.decode import decode_row
from pipeline.stages.detect import Detector, DetectorSpec
from pipeline.stages.joining import join_views
from pipeline.stages.prepare import Preparer
from pipeline.stages.recovery import Outcome, RecoveringDetector
from pipeline.stages.tiling import Tiling, View, views
from tests.pipeline.stages.test_box_rules import reference
from tests.pipeline.stages.test_enlarge import EnlargingPredictor
from tests.support.samples import RULE

SIZE = (110, 150)  # height and width
# RULE makes the shorter side 64 pixels: tiles of 100 are reduced, and those of 60 enlarged.
SIDES = (100, 60)
CHOSEN, LEAST = (5, 6), 0.05  # classes that rules keep, and the least score of the first

Pixels = npt.NDArray[np.uint8]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def prepared(images: Sequence[Pixels], tiling: Tiling | None, **options: Any) -> pa.Table:
    """The PREPARED rows of images, without a child process."""
    rows = []
    for index, image in enumerate(images):
        row = decode_row(png(image), RULE, 10**6, tiling=tiling, **options)
        assert row["status"] == "ok", row["error"]
        known = {"shard": "s", "index_in_shard": index, "pixels": bytes(row["pixels"])}
        rows.append({**row, **known})
    return pa.Table.from_pylist(rows, schema=PREPARED)


@pytest.fixture(params=SIDES)
def detector(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Detector:
    """A detector of images in tiles of SIDES."""
    monkeypatch.setattr(Predictor, "resize", RULE)
    tiling = Tiling(request.param, 0.25)
    return Detector(
        DetectorSpec("shapes-tiny", None, "cpu", "fp32", 0.0, None, "tiles", tiling=tiling)
    )


@pytest.fixture
def of_views(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[View], Sequence[Outcome]]]:
    """The outcomes that detectors join, before they do."""
    found: list[tuple[Sequence[View], Sequence[Outcome]]] = []

    def join(own: Sequence[View], outcomes: Sequence[Outcome]) -> Outcome:
        found.append((own, outcomes))
        return join_views(own, outcomes)

    monkeypatch.setattr(detect, "join_views", join)
    return found


def test_tiles_have_the_boxes_of_images_of_their_own(detector: Detector, of_views: Any) -> None:
    image = noise(*SIZE)
    (found,) = detector(prepared([image], detector.spec.tiling)).to_pylist()
    ((own, outcomes),) = of_views
    assert own == views(*SIZE, RULE, True, detector.spec.tiling) and len(own) >= 5
    cuts = [image[v.top : v.top + v.height, v.left : v.left + v.width] for v in own]
    table = prepared(cuts, None)
    alone = detector.batcher.detect([image_of(table, row) for row in range(len(table))])
    for outcome, expected in zip(outcomes, alone, strict=True):
        assert np.array_equal(outcome.boxes, expected.boxes) and len(outcome.boxes) > 50
        assert np.array_equal(outcome.scores, expected.scores)
        assert np.array_equal(outcome.labels, expected.labels)
    assert [box["score"] for box in found["boxes"]] == join_views(own, alone).scores.tolist()
    assert len(found["boxes"]) > 100  # the limit of a view is not that of an image


def image_of(table: pa.Table, row: int) -> recovery.Image:
    """The image of a row without tiles."""
    names = ("height", "width", "rows", "columns", "pixels")
    height, width, rows, columns, pixels = (table[name][row].as_py() for name in names)
    content = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(rows, columns, 3)
    return recovery.Image(f"alone{row}", content, (height, width))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or "TRITON_INTERPRET" not in os.environ,
    reason="Triton's interpreter is not in use",
)
@pytest.mark.parametrize("detector", [60], indirect=True)
def test_a_detector_that_enlarges_gives_tiles_the_same_boxes(
    detector: Detector, of_views: Any
) -> None:
    """The same as images of their own that their preparer enlarged."""
    assert isinstance(detector.predictor, Predictor)
    predictor = EnlargingPredictor(detector.predictor)
    journal = detector.batcher.detector.journal
    detector.batcher = Batcher(RecoveringDetector(predictor, journal, 0.0), calls=1)
    image = noise(70, 90)
    detector(prepared([image], detector.spec.tiling, enlarge=False))
    ((own, outcomes),) = of_views
    assert any(sources is not None for sources in predictor.batches)
    cuts = [image[v.top : v.top + v.height, v.left : v.left + v.width] for v in own]
    table = prepared(cuts, None)
    predictor.batches.clear()
    alone = detector.batcher.detect([image_of(table, row) for row in range(len(table))])
    assert predictor.batches == [None] * len(predictor.batches)
    for outcome, expected in zip(outcomes, alone, strict=True):
        assert np.array_equal(outcome.boxes, expected.boxes) and len(outcome.boxes) > 50
        assert np.array_equal(outcome.scores, expected.scores)


@pytest.mark.parametrize("detector", [100], indirect=True)
def test_images_that_fit_in_a_tile_are_labelled_as_without(
    detector: Detector, of_views: Any
) -> None:
    images = [noise(100, 100), noise(*SIZE), noise(40, 99)]
    tiled = prepared(images, detector.spec.tiling)
    plain = prepared(images, None)
    for row in (0, 2):
        assert tiled.slice(row, 1).equals(plain.slice(row, 1))
    found = detector(tiled).to_pylist()
    assert len(of_views) == 1
    expected = Detector(DetectorSpec("shapes-tiny", None, "cpu", "fp32", 0.0, None, "plain"))(plain)
    for row in (0, 2):
        assert found[row]["boxes"] == expected["boxes"][row].as_py()


@pytest.mark.parametrize("detector", [100], indirect=True)
def test_sizes_and_overlaps_are_those_of_joined_boxes(detector: Detector, of_views: Any) -> None:
    """Classes, their thresholds and their new names count in each view."""
    table = prepared([noise(*SIZE)], detector.spec.tiling)
    detector(table)
    ((own, outcomes),) = of_views
    wanted = []
    for one in outcomes:
        kept = np.isin(one.labels, CHOSEN) & (one.scores >= np.where(one.labels == 5, LEAST, 0))
        labels = np.where(one.labels == 6, 5, one.labels)[kept]
        wanted.append(replace(one, scores=one.scores[kept], labels=labels, boxes=one.boxes[kept]))
    joined = join_views(own, wanted)
    suppress = BoxRules(min_size=9.0, nms=0.2)
    rows = reference(suppress, (joined.scores, joined.labels, joined.boxes), 0.0)
    rules = replace(suppress, classes=CHOSEN, thresholds=((5, LEAST),), renamed=((6, 5),))
    (found,) = Detector(replace(detector.spec, rules=rules))(table)["boxes"].to_pylist()
    assert [list(box.values()) for box in found] == [
        [label, joined.scores[at], *joined.boxes[at]] for at, label in rows
    ]
    assert 5 < len(rows) < len(joined.scores) / 2


def test_a_confined_decoder_reads_bands(caplog: pytest.LogCaptureFixture) -> None:
    """A small limit stands for images of more than 100 megapixels."""
    pytest.importorskip("pyvips")
    tiling = Tiling(100, 0.25)
    images = [Image.fromarray(noise(*SIZE)), Image.fromarray(noise(60, 90))]
    files = {name: [io.BytesIO() for _ in images] for name in ("JPEG", "TIFF", "PNG")}
    for name, contents in files.items():
        for file, image in zip(contents, images, strict=True):
            image.save(file, name)
    given = [
        {"status": "ok", "encoded": file.getvalue()}
        for contents in files.values()
        for file in contents
    ]
    preparer = Preparer(RULE, max_pixels=10_000, tiling=tiling)
    table = pa.Table.from_pylist(given, schema=ENCODED)
    rows = [row for block in preparer(table) for row in block.to_pylist()]
    preparer.child.close()
    assert [row["status"] for row in rows] == [*["ok"] * 4, "too_many_pixels", "ok"]
    assert "of PNG files no bands are read" in rows[4]["error"]
    assert not preparer.child.unlimited_because or caplog.messages
    whole, *tiles = views(*SIZE, RULE, True, tiling)
    for row, name in zip(rows[:4:2], files, strict=False):
        pixels = np.array(Image.open(files[name][0]))
        first = tiles[0]
        expected = decode_row(png(pixels[: first.height, : first.width]), RULE, 10**6)["pixels"]
        assert row["pixels"][whole.bytes :][: first.bytes] == bytes(expected)
        assert len(row["pixels"]) == whole.bytes + sum(tile.bytes for tile in tiles)


def test_an_answer_with_other_views_is_noticed() -> None:
    preparer = Preparer(RULE, tiling=Tiling(100, 0.25))
    is_plausible = preparer.child.answers.is_plausible
    good = decode_row(png(noise(*SIZE)), RULE, 10**6, tiling=preparer.tiling)
    assert is_plausible(good)
    assert not is_plausible({**good, "pixels": good["pixels"][:-3]})
    assert not is_plausible({**good, "width": SIZE[1] + 90})
    assert not is_plausible({**good, "height": 1, "width": 2**31 - 1})
    assert is_plausible({**good, **decode_row(png(noise(90, 90)), RULE, 10**6)})
    preparer.child.close()
