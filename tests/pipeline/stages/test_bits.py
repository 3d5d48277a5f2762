"""An image has the same bits in any call, order, company, process and run, in bf16 and fp32."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.schema import DETECTED, PREPARED
from pipeline.stages.detect import CPU_THREADS, Detector, DetectorSpec
from tests.support.parameters import others_slow

IMAGES = 20


def prepared(numbers: Sequence[int], shard: str = "s") -> pa.Table:
    """Images of mixed sizes, each a function of its number alone."""
    rows = []
    for index, number in enumerate(numbers):
        rng = np.random.default_rng(number)
        height, width = rng.integers(60, 300, 2).tolist()
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        pixels = np.ascontiguousarray(coarse.repeat(40, 0).repeat(40, 1)[:height, :width])
        rows.append(
            {
                "image_id": str(number),
                "shard": shard,
                "index_in_shard": index,
                "status": "ok",
                "width": 2 * width,
                "height": 2 * height,
                "rows": height,
                "columns": width,
                "pixels": pixels.tobytes(),
            }
        )
    return pa.Table.from_pylist(rows, schema=PREPARED)


def digests(tables: Sequence[pa.Table]) -> dict[str, str]:
    """A digest of the bytes of all boxes and scores, by image."""
    found: dict[str, str] = {}
    for table in tables:
        assert table.schema == DETECTED and set(table["status"].to_pylist()) == {"ok"}
        for image, boxes in zip(table["image_id"].to_pylist(), table["boxes"], strict=True):
            columns = boxes.values.flatten()
            assert len(boxes.values) > 50
            content = b"".join(column.to_numpy().tobytes() for column in columns)
            assert image not in found
            found[image] = hashlib.sha256(content).hexdigest()
    return found


def make_detector(precision: str, calls: int = 1) -> Detector:
    spec = DetectorSpec("shapes-tiny", None, "cpu", precision, 0.0, None, "bits", None, CPU_THREADS)
    return Detector(DetectorSpec(**{**vars(spec), "calls": calls}))


@pytest.mark.parametrize("precision", others_slow(["fp32", "bf16"]))
def test_an_image_has_the_same_bits_whatever_its_company(precision: str) -> None:
    detector = make_detector(precision)
    expected = digests([detector(prepared([number])) for number in range(IMAGES)])
    assert len(set(expected.values())) == IMAGES
    shuffled = random.Random(0).sample(range(IMAGES), IMAGES)
    assert digests([detector(prepared(shuffled))]) == expected
    halves = [prepared(shuffled[::2], "other"), prepared(shuffled[1::2])]
    two_calls = make_detector(precision, calls=2)
    with ThreadPoolExecutor(2) as pool:
        assert digests(list(pool.map(two_calls, halves))) == expected


IN_ANOTHER_PROCESS = """
import json
from tests.pipeline.stages.test_bits import IMAGES, digests, make_detector, prepared
print(json.dumps(digests([make_detector("PRECISION")(prepared(list(range(IMAGES))[::-1]))])))
"""


def digests_of_another_process(precision: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS.replace("PRECISION", precision)]
    given = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=given)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("precision", others_slow(["fp32", "bf16"]))
def test_another_process_gives_the_same_bits(precision: str) -> None:
    detector = make_detector(precision)
    found = digests([detector(prepared(range(IMAGES)))])
    assert found == digests_of_another_process(precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_processes_that_compile_the_kernels_give_the_same_bits(
    precision: str, tmp_path: Path
) -> None:
    """The first compiles them, the second loads them, and both have threads to spare."""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    compiled, loaded = (digests_of_another_process(precision, **cache) for _ in range(2))
    assert any(tmp_path.rglob("*.nbc"))
    assert compiled == loaded == digests_of_another_process(precision)
