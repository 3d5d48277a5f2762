"""Detectors label every image or fail it alone: little memory, stalls, overflows, two calls."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from jobs.accounting.tally import Tally
from jobs.label.progress import show_progress
from model.deformable_detr import Predictions
from model.errors import DamagedCheckpoint
from model.predictor import Pending, Predictor
from model.weights import file_sha256
from pipeline.schema import PREPARED, Receipt
from pipeline.stages.detect import Detector, DetectorSpec
from tests.chaos.injected import INJECTED

CONFINED = """
import json, resource
import numpy as np, pyarrow as pa
from pathlib import Path
from pipeline.stages.detect import Detector, DetectorSpec
from pipeline.schema import PREPARED

def draw_images(count):
    pixels = np.random.default_rng(0).integers(0, 255, (count, 640, 640, 3), np.uint8)
    return pa.Table.from_pylist(
        [
            {"image_id": str(i), "shard": "s", "index_in_shard": i, "status": "ok", "width": 640,
             "height": 640, "pixels": pixels[i].tobytes(), "rows": 640, "columns": 640}
            for i in range(count)
        ],
        schema=PREPARED,
    )

detector = Detector(DetectorSpec("shapes-tiny", "random", "cpu", "fp32", 0.0, 16, "test"))
alone = detector(draw_images(1))
lines = Path("/proc/self/status").read_text().splitlines()
used = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + (MEMORY << 20),) * 2)
for _ in range(2):
    found = detector(draw_images(16))
print(json.dumps({
    "statuses": sorted(set(found["status"].to_pylist())),
    "limits": sorted(set(found["batch_limit"].to_pylist()), key=str),
    "same": found["boxes"][0].as_py()[0]["label_id"] == alone["boxes"][0].as_py()[0]["label_id"],
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="this test limits memory by means of Linux")
def test_a_batch_larger_than_memory_is_halved_and_later_batches_too() -> None:
    """Sixteen images need 1,600 MiB, and four need 370, but the process gets 600."""
    code = CONFINED.replace("MEMORY", "600")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["statuses"] == ["ok"] and found["same"]
    (limit,) = found["limits"]
    assert limit in (1, 2, 4, 8)


def test_two_calls_at_once_give_the_results_of_single_calls(tmp_path: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = DetectorSpec("shapes-tiny", "random", device, "fp32", 0.0, 2, "two calls")
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


def test_detect_seconds_are_those_that_the_device_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is too large counts the seconds of its halves."""
    monkeypatch.setattr(Pending, "device_seconds", property(lambda self: 6.0))
    submit = Predictor.submit

    def submit_few(self: Predictor, images: Sequence[Tensor], sizes: Tensor) -> Pending:
        if len(images) > 2:
            raise MemoryError("more than two images")
        return submit(self, images, sizes)

    monkeypatch.setattr(Predictor, "submit", submit_few)
    detector = Detector(DetectorSpec("shapes-tiny", "random", "cpu", "fp32", 0.0, 3, "seconds"))
    pixels = np.zeros((64, 64, 3), np.uint8).tobytes()
    common = {"shard": "s", "status": "ok", "pixels": pixels}
    sides = dict.fromkeys(("width", "height", "rows", "columns"), 64)
    rows = [{"image_id": str(i), "index_in_shard": i, **common, **sides} for i in range(5)]
    found = detector(pa.Table.from_pylist(rows, schema=PREPARED))
    assert found["status"].to_pylist() == ["ok"] * 5
    # The first three images ran as one and two; from then on each ran alone.
    assert found["detect_seconds"].to_pylist() == [4.0, 4.0, 4.0, 6.0, 6.0]


def test_an_image_whose_output_is_not_finite_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold would drop the boxes of such an image, and the row would be "ok" without any."""
    submit = Predictor.submit

    def overflow_at_white(self: Predictor, images: Sequence[Tensor], sizes: Tensor) -> Pending:
        white = torch.tensor([bool((image == 255).all()) for image in images])

        def overflow(_: torch.nn.Module, __: object, output: Predictions) -> None:
            output.pred_logits[white, 7, 1] = float("nan")

        hook = self.net.register_forward_hook(overflow)
        try:
            return submit(self, images, sizes)
        finally:
            hook.remove()

    monkeypatch.setattr(Predictor, "submit", overflow_at_white)
    detector = Detector(DetectorSpec("shapes-tiny", "random", "cpu", "fp32", 0.0, 3, "finite"))
    sides = dict.fromkeys(("width", "height", "rows", "columns"), 64)
    rows = [
        {
            "image_id": str(index),
            "index_in_shard": index,
            "shard": "s",
            "status": "ok",
            "pixels": np.full((64, 64, 3), grey, np.uint8).tobytes(),
            **sides,
        }
        for index, grey in enumerate((10, 255, 20))
    ]
    found = detector(pa.Table.from_pylist(rows, schema=PREPARED)).to_pylist()
    assert [row["status"] for row in found] == ["ok", "detector_error", "ok"]
    assert [len(row["boxes"]) for row in found] == [100, 0, 100]
    assert "not finite" in found[1]["error"]


def test_boxes_of_classes_without_a_name_are_left_out() -> None:
    """Number 0 is no class of the model; that it scores best takes no other box's rank but one."""
    detector = Detector(DetectorSpec("shapes-tiny", "random", "cpu", "fp32", 0.0, 1, "named"))
    row = {"image_id": "0", "index_in_shard": 0, "shard": "s", "status": "ok"}
    sides = dict.fromkeys(("width", "height", "rows", "columns"), 64)
    row |= {"pixels": np.full((64, 64, 3), 9, np.uint8).tobytes(), **sides}
    table = pa.Table.from_pylist([row], schema=PREPARED)

    def favour_number_0(_: torch.nn.Module, __: object, output: Predictions) -> None:
        output.pred_logits[:, 7, 0] = 20.0

    assert detector.predictor.net.config.labels[0] == ""
    (before,) = detector(table).to_pylist()
    detector.predictor.net.register_forward_hook(favour_number_0)
    (after,) = detector(table).to_pylist()
    named = [box for box in before["boxes"] if box["label_id"]]
    assert after["boxes"] == named[:99] and len(after["boxes"]) > 90
    assert before["boxes"] == named


def test_other_weights_than_the_command_found_are_refused_by_the_first_call(weights: str) -> None:
    """Not by the constructor: Ray would repeat it, and print pages."""
    right = file_sha256(Path(weights))
    Detector(DetectorSpec("shapes-tiny", weights, "cpu", "fp32", 0.0, 1, "right", right))
    spec = DetectorSpec("shapes-tiny", weights, "cpu", "fp32", 0.0, 1, "wrong", "0" * 64)
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
spec = DetectorSpec("shapes-tiny", "random", "cpu", "fp32", 0.0, 8, "SESSION")
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
        assert ended == [1, 1, 1, 0]  # the whole batch once, then the image alone, twice
        rows = json.loads(done.stdout.splitlines()[-1])
        assert [row["status"] for row in rows] == ["ok", "timed_out", "ok"]
        assert "took more than 3 s, 2 times" in rows[1]["error"]


def test_a_shortage_of_memory_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    limits = (None, 4, 4, 2, None)
    tally = Tally()
    show_progress([Receipt("file", ("s",), 1, 0, batch_limit=limit) for limit in limits], tally)
    printed = capsys.readouterr().err.replace("\n", " ")
    assert printed.count("does not hold as many images") == 1
    assert tally.batch_limit == 2
