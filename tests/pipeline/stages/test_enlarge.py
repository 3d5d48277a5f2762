"""Images that the detector enlarges cross the pipeline small, and get the boxes that they get."""

import importlib.util
import io
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from torch import Tensor

from model.detector import Size
from model.predictor import PendingDetections, Predictor
from model.preprocess import enlarge
from model.resize import canvas_rule
from pipeline.schema import ENCODED, PREPARED
from pipeline.stages.batcher import Batcher
from pipeline.stages.detect import Detector, DetectorSpec
from pipeline.stages.prepare import Preparer
from pipeline.stages.recovery import RecoveringDetector
from tests.support.parameters import others_slow
from tests.support.samples import RULE, preparer

# Height and width as displayed, and those in which an image crosses: RULE makes the shorter side 64
# pixels, unless the longer one would exceed 128.
SIZES: list[tuple[Size, Size]] = [
    ((48, 64), (48, 64)),
    ((33, 41), (33, 41)),
    ((64, 85), (64, 85)),
    ((97, 133), (64, 87)),
    ((20, 30), (20, 30)),
    ((40, 90), (40, 90)),
    ((1, 90), (1, 90)),
    ((3, 200), (2, 133)),
    ((8, 9), (64, 72)),  # it becomes 64 times as large
]


def encoded_images() -> pa.Table:
    """PNGs of noise in all sizes, as the reader hands them over."""
    rows = []
    for index, (size, _) in enumerate(SIZES):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)).save(
            file, "PNG"
        )
        row = {"shard": "s", "index_in_shard": index, "status": "ok", "encoded": file.getvalue()}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=ENCODED)


def prepared(preparer: Preparer) -> pa.Table:
    return pa.concat_tables(preparer(encoded_images()))


@pytest.fixture(scope="module")
def small() -> pa.Table:
    """PREPARED rows of a preparer that does not enlarge."""
    preparer = Preparer(RULE, enlarge=False)
    table = prepared(preparer)
    preparer.child.close()
    return table


def test_images_cross_in_the_smaller_of_two_sizes(small: pa.Table) -> None:
    assert small.schema == PREPARED
    for row, (displayed, crossing) in zip(small.to_pylist(), SIZES, strict=True):
        assert (row["status"], row["error"]) == ("ok", None)
        assert (row["height"], row["width"]) == displayed
        assert (row["rows"], row["columns"]) == crossing
        assert len(row["pixels"]) == crossing[0] * crossing[1] * 3


class EnlargingPredictor(Predictor):
    """A predictor in the form of a GPU that has Triton, on this CPU."""

    def __init__(self, predictor: Predictor):
        super().__init__(predictor.net, "cpu")
        self.pads, self.enlarges, self.count = True, True, 2
        self.canvases = canvas_rule(RULE)
        self.batches: list[Tensor | None] = []  # sources of each

    def submit(
        self, pixels: Tensor, valid: Tensor | None, sizes: Tensor, sources: Tensor | None = None
    ) -> PendingDetections:
        self.batches.append(sources)
        if sources is not None and valid is not None:
            pixels = enlarge(pixels, valid, sources)
        return super().submit(pixels, valid, sizes)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Detector:
    monkeypatch.setattr(Predictor, "resize", RULE)
    return Detector(DetectorSpec("shapes-tiny", None, "cpu", "fp32", 0.0, None, "enlarge"))


@pytest.fixture(scope="module")
def large() -> pa.Table:
    """The same rows of a preparer that enlarges."""
    return prepared(preparer())


def assert_equal_boxes(detector: Detector, large: pa.Table, small: pa.Table) -> None:
    large, found = detector(large), detector(small)
    assert large["status"].to_pylist() == ["ok"] * len(small)
    assert all(len(boxes) > 50 for boxes in large["boxes"].to_pylist())
    assert found.select(["status", "boxes", "width"]).equals(
        large.select(["status", "boxes", "width"])
    )


def test_a_detector_that_does_not_enlarge_gives_the_same_boxes(
    detector: Detector, large: pa.Table, small: pa.Table
) -> None:
    assert not detector.predictor.enlarges
    assert_equal_boxes(detector, large, small)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or "TRITON_INTERPRET" not in os.environ,
    reason="Triton's interpreter is not in use",
)
@pytest.mark.parametrize("images", others_slow([[1, 2, 4, 8], range(len(SIZES))]))
def test_a_detector_that_enlarges_gives_the_same_boxes(
    images: Sequence[int], detector: Detector, large: pa.Table, small: pa.Table
) -> None:
    assert isinstance(detector.predictor, Predictor)
    predictor = EnlargingPredictor(detector.predictor)
    recovering = RecoveringDetector(predictor, detector.batcher.detector.journal, 0.0)
    detector.batcher = Batcher(recovering, calls=1)
    assert_equal_boxes(detector, large.take(list(images)), small.take(list(images)))
    halves = len(predictor.batches) // 2
    assert predictor.batches[:halves] == [None] * halves  # of images that were enlarged before
    assert any(sources is not None for sources in predictor.batches[halves:])
