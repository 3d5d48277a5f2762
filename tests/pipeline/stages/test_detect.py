"""Detectors label every image or fail it alone: little memory, stalls, overflows, two calls."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from jobs.accounting.tally import Tally
from jobs.label.progress import show_progress
from model.errors import DamagedCheckpoint
from model.predictions import Predictions
from model.predictor import PendingDetections, Predictor
from model.weights import file_sha256
from pipeline.schema import DETECTED, PREPARED, Receipt
from pipeline.stages.batcher import Batcher
from pipeline.stages.detect import Detector, DetectorSpec
from pipeline.stages.recovery import RecoveringDetector
from tests.chaos.injected import INJECTED
from tests.support.fake_detector import FakeDetector
from tests.support.parameters import others_slow

CONFINED = """
import json, resource
import numpy as np, pyarrow as pa
from pathlib import Path
from pipeline.stages.detect import Detector, DetectorSpec
from pipeline.schema import PREPARED

def draw_images(count, side):
    pixels = np.random.default_rng(0).integers(0, 255, (count, side, side, 3), np.uint8)
    return pa.Table.from_pylist(
        [
            {"image_id": str(i), "shard": "s", "index_in_shard": i, "status": "ok", "width": side,
             "height": side, "pixels": pixels[i].tobytes(), "rows": side, "columns": side}
            for i in range(count)
        ],
        schema=PREPARED,
    )

detector = Detector(DetectorSpec("shapes-tiny", "random", "cpu", "fp32", 0.0, None, "test"))
detector(draw_images(1, 64))  # starts threads, whose stacks take memory
images = draw_images(3, 640)
lines = Path("/proc/self/status").read_text().splitlines()
used = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + (MEMORY << 20),) * 2)
try:
    found = detector(images)
    print(json.dumps(found["status"].to_pylist()))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="this test limits memory by means of Linux")
@pytest.mark.parametrize("memory", others_slow([20, 600]))
def test_too_little_memory_ends_the_run_and_fails_no_image(memory: int) -> None:
    code = CONFINED.replace("MEMORY", str(memory))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if memory == 600:
        assert found == ["ok"] * 3
    else:
        assert found[0] == "OutOfMemory" and "a machine with more memory" in found[1]


@pytest.mark.slow
def test_two_calls_at_once_give_the_results_of_single_calls(tmp_path: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = DetectorSpec("shapes-tiny", "random", device, "fp32", 0.0, 2, "two calls", calls=2)
    detector = Detector(spec)
    random = np.random.default_rng(0)
    sides = [(96, 128), (96, 128), (64, 160), (96, 128), (90, 70)]
    tables = []
    for name in ("a", "b"):
        rows = [
            {
                "image_id": f"{name}{i}",
                "shard": name,
                "index_in_shard": i,
                "status": "ok",
                "width": side[1],
                "height": side[0],
                "rows": side[0],
                "columns": side[1],
                "pixels": random.integers(0, 255, (*side, 3), np.uint8).tobytes(),
            }
            for i, side in enumerate(sides)
        ]
        tables.append(pa.Table.from_pylist(rows, schema=PREPARED))
    columns = ["image_id", "status", "boxes"]
    expected = [detector(table).select(columns) for table in tables]
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(detector, tables * 3))
    took = time.perf_counter() - began
    for table, theirs in zip(found, expected * 3, strict=True):
        assert table.select(columns).equals(theirs)
    counted = sum(sum(table["detect_seconds"].to_pylist()) for table in found)
    assert 0 < counted <= took  # time that two calls share is counted once


def test_detect_seconds_are_those_that_the_device_measured() -> None:
    """Those of a batch are shared by its images. `FakeDetector` reports 8 seconds a batch."""
    detector = Detector(DetectorSpec("shapes-tiny", "random", "cpu", "fp32", 0.0, None, "seconds"))
    recovering = RecoveringDetector(FakeDetector(count=4), detector.batcher.detector.journal, 0.0)
    detector.batcher = Batcher(recovering, 1)
    found = detector(table_of([np.zeros((64, 64, 3), np.uint8)] * 6))
    assert found["status"].to_pylist() == ["ok"] * 6
    assert found["detect_seconds"].to_pylist() == [2.0] * 4 + [4.0] * 2


def table_of(images: Sequence[npt.NDArray[np.uint8]]) -> pa.Table:
    """The images as rows of one shard."""
    rows = [
        {
            "image_id": str(index),
            "index_in_shard": index,
            "shard": "s",
            "status": "ok",
            "width": image.shape[1],
            "height": image.shape[0],
            "rows": image.shape[0],
            "columns": image.shape[1],
            "pixels": image.tobytes(),
        }
        for index, image in enumerate(images)
    ]
    return pa.Table.from_pylist(rows, schema=PREPARED)


def test_rows_that_failed_before_pass_through() -> None:
    detector = Detector(DetectorSpec("shapes-tiny", "random", "cpu", "fp32", 0.0, None, "through"))
    whole = table_of([np.full((64, 64, 3), grey, np.uint8) for grey in range(3)])
    rows = whole.to_pylist()
    rows[1] |= dict.fromkeys(("pixels", "rows", "columns", "width", "height"))
    rows[1] |= {"status": "undecodable", "error": "no image"}
    found = detector(pa.Table.from_pylist(rows, schema=PREPARED)).to_pylist()
    assert [row["status"] for row in found] == ["ok", "undecodable", "ok"]
    assert found[1]["error"] == "no image" and found[1]["boxes"] == []
    alone = detector(whole).to_pylist()
    assert [found[index]["boxes"] for index in (0, 2)] == [alone[0]["boxes"], alone[2]["boxes"]]
    assert detector(PREPARED.empty_table()).schema == DETECTED


def test_an_image_whose_output_is_not_finite_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold would drop the boxes of such an image, and the row would be "ok" without any."""
    submit = Predictor.submit

    def overflow_at_white(self: Predictor, pixels: Tensor, *others: Any) -> PendingDetections:
        white = torch.tensor([bool((image == 255).all()) for image in pixels])

        def overflow(_: torch.nn.Module, __: object, output: Predictions) -> None:
            output.pred_logits[white, 7, 1] = float("nan")

        hook = self.net.register_forward_hook(overflow)
        try:
            return submit(self, pixels, *others)
        finally:
            hook.remove()

    monkeypatch.setattr(Predictor, "submit", overflow_at_white)
    detector = Detector(DetectorSpec("shapes-tiny", "random", "cpu", "fp32", 0.0, None, "finite"))
    images = [np.full((64, 64, 3), grey, np.uint8) for grey in (10, 255, 20)]
    found = detector(table_of(images)).to_pylist()
    assert [row["status"] for row in found] == ["ok", "detector_error", "ok"]
    assert [len(row["boxes"]) for row in found] == [100, 0, 100]
    assert "not finite" in found[1]["error"]


def test_boxes_of_classes_without_a_name_are_left_out() -> None:
    """Number 0 is no class of the model; that it scores best takes no other box's rank but one."""
    detector = Detector(DetectorSpec("shapes-tiny", "random", "cpu", "fp32", 0.0, None, "named"))
    table = table_of([np.full((64, 64, 3), 9, np.uint8)])

    def favour_number_0(_: torch.nn.Module, __: object, output: Predictions) -> None:
        output.pred_logits[:, 7, 0] = 20.0

    assert isinstance(detector.predictor, Predictor) and detector.predictor.labels[0] == ""
    (before,) = detector(table).to_pylist()
    detector.predictor.net.register_forward_hook(favour_number_0)
    (after,) = detector(table).to_pylist()
    named = [box for box in before["boxes"] if box["label_id"]]
    assert after["boxes"] == named[:99] and len(after["boxes"]) > 90
    assert before["boxes"] == named


def test_other_weights_than_the_command_found_are_refused_by_the_first_call(weights: str) -> None:
    """Not by the constructor: Ray would repeat it, and print pages."""
    right = file_sha256(Path(weights))
    Detector(DetectorSpec("shapes-tiny", weights, "cpu", "fp32", 0.0, None, "right", right))
    spec = DetectorSpec("shapes-tiny", weights, "cpu", "fp32", 0.0, None, "wrong", "0" * 64)
    detector = Detector(spec)
    with pytest.raises(DamagedCheckpoint, match=f"{right}.*replaced meanwhile"):
        detector(PREPARED.empty_table())


STANDING_STILL = """
import json
import numpy as np, pyarrow as pa
import pipeline.stages.detect
from pipeline.stages.detect import Detector, DetectorSpec
from pipeline.schema import PREPARED

pipeline.stages.detect.DETECT_SECONDS = 3.0
colours = [(10, 20, 30), (255, 255, 0), (30, 20, 10)]
rows = [
    {"image_id": str(i), "shard": "s", "index_in_shard": i, "status": "ok", "width": 64,
     "height": 64, "pixels": np.full((64, 64, 3), colour, np.uint8).tobytes(), "rows": 64,
     "columns": 64}
    for i, colour in enumerate(colours)
]
spec = DetectorSpec("shapes-tiny", "random", "cpu", "fp32", 0.0, None, "SESSION")
found = Detector(spec)(pa.Table.from_pylist(rows, schema=PREPARED))
print(json.dumps(found.select(["status", "error"]).to_pylist()))
"""


@pytest.mark.slow
def test_an_image_over_which_the_device_stalls_fails(tmp_path: Path) -> None:
    """The test starts the process again until it answers, as Ray would."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(INJECTED), os.getcwd()]),
        "DETR_BATCH_FAULTS": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }
    for session in ("first", "second"):  # a second session must not see the first one's crashes
        command = [sys.executable, "-c", STANDING_STILL.replace("SESSION", session)]
        ended = []
        for _ in range(5):
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            ended.append(done.returncode)
            if not done.returncode:
                break
            assert "more than 3 s for a batch" in done.stderr
        assert ended == [1, 1, 1, 0]
        rows = json.loads(done.stdout.splitlines()[-1])
        assert [row["status"] for row in rows] == ["ok", "timed_out", "ok"]
        assert "took more than 3 s, 3 times" in rows[1]["error"]


def test_detectors_that_compute_otherwise_are_reported_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    computations = (None, "bf16 on A", "bf16 on A", "bf16 on B", "bf16 on B", "bf16 on A")
    tally = Tally()
    receipts = [Receipt("file", ("s",), 2, 0, computation=one) for one in computations]
    show_progress(iter(receipts), tally)
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.count("their last digits may differ") == 1
    assert "computed in bf16 on B, others in bf16 on A" in printed
    assert tally.computations == {"bf16 on A": 6, "bf16 on B": 4}
