"""What `import` and `export` hold at most, however many boxes there are."""

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
    pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux does"),
]


def peak(*arguments: object) -> int:
    """MiB that a command held at most."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A million boxes that came from a results file in any order."""
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
    held = peak("import", folder / "results.json", folder / "out", *options)
    print("import", held, "MiB")
    assert held < 900
    return folder / "out"


@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_a_million_boxes_in_bounded_memory(to: str, output: Path, tmp_path: Path) -> None:
    held = peak("export", output, tmp_path / "made", "--to", to)
    print(to, held, "MiB")
    assert held < 700
