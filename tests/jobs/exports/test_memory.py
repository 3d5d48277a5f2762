"""The memory of `import` and `export` is bounded, however many boxes there are."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

MEASURED = """
import sys
from jobs.cli import main
code = main(sys.argv[1:])
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")))
sys.exit(code)
"""
IMAGES, BOXES_EACH = 20_000, 50

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux", reason="these tests measure memory by means of Linux"
    ),
]


def run_and_measure_peak(*arguments: object) -> int:
    """Run a command; return its peak memory in MiB."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OUTPUT of a million boxes, imported from a results file in random order."""
    folder = tmp_path_factory.mktemp("million")
    names = [{"id": k, "file_name": f"{k}.jpg", "width": 640, "height": 480} for k in range(IMAGES)]
    document = {"images": names, "categories": [{"id": 1, "name": "box"}]}
    (folder / "truth.json").write_text(json.dumps(document))
    source = random.Random(0)
    with (folder / "results.json").open("w") as file:
        for number in range(IMAGES * BOXES_EACH):
            box = {
                "image_id": source.randrange(IMAGES),
                "category_id": 1,
                "bbox": [number % 500, number % 400, 100.5, 50.25],
                "score": source.random(),
            }
            file.write((",\n" if number else "[") + json.dumps(box))
        file.write("]")
    options = ("--annotations", folder / "truth.json")
    peak = run_and_measure_peak("import", folder / "results.json", folder / "out", *options)
    print("import", peak, "MiB")
    assert peak < 900
    return folder / "out"


@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_a_million_boxes_are_exported_in_bounded_memory(
    to: str, output: Path, tmp_path: Path
) -> None:
    peak = run_and_measure_peak("export", output, tmp_path / "made", "--to", to)
    print(to, peak, "MiB")
    assert peak < 700
