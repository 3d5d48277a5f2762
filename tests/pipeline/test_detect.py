"""A detector whose memory is confined by the system labels all the same."""

import json
import subprocess
import sys

import pytest

from jobs.progress import show
from jobs.run_record import Tally
from pipeline.schema import Receipt

CONFINED = """
import json, resource
import numpy as np, pyarrow as pa
from pathlib import Path
from pipeline.detect import Detector, DetectorSpec
from pipeline.schema import PREPARED

def pictures(count):
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
alone = detector(pictures(1))
lines = Path("/proc/self/status").read_text().splitlines()
held = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (held + (MEMORY << 20),) * 2)
for _ in range(2):
    found = detector(pictures(16))
print(json.dumps({
    "statuses": sorted(set(found["status"].to_pylist())),
    "limits": sorted(set(found["batch_limit"].to_pylist()), key=str),
    "same": found["boxes"][0].as_py()[0]["label_id"] == alone["boxes"][0].as_py()[0]["label_id"],
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is confined by Linux's means")
def test_a_batch_larger_than_memory_is_halved_and_stays_so() -> None:
    """Sixteen pictures take 1,600 MiB, four 370."""
    code = CONFINED.replace("MEMORY", "600")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["statuses"] == ["ok"] and found["same"]
    (limit,) = found["limits"]
    assert limit in (1, 2, 4, 8)


def test_the_run_says_once_that_memory_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    limits = (None, 4, 4, 2, None)
    tally = Tally()
    show([Receipt("file", ("s",), 1, 0, batch_limit=limit) for limit in limits], tally)
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("does not hold as many pictures") == 1
    assert tally.batch_limit == 2
