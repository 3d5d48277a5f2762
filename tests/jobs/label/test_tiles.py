"""Runs of `label --tile`: small objects are found, and all lakes and killed runs give equal labels.

`pytest -s -m slow tests/jobs/label/test_tiles.py` prints the AP of pipeline/README.md.
"""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.coco.records import Category
from jobs.coco.writer import NewAnnotation, NewImage, write_annotations
from jobs.demo.scenes import SHAPES, render_scene
from jobs.evaluate.evaluate import evaluate
from jobs.label.label import label
from jobs.label.options import LabelOptions
from jobs.output import paths
from tests.jobs.label.test_bits import bits
from tests.jobs.label.test_label import kill_before_publishing
from tests.support.labelling import tiny_options
from tests.support.samples import write_tar

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

SIDE, MOST, SCENES = 2600, 100, 6
EXTENTS = (1 / 130, 1 / 9)  # of shapes: 20 to 289 pixels
TILES = {"tile": 160, "tile_overlap": 0.25}


def noise(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    height, width = random.integers(100, 400, 2)
    file = io.BytesIO()
    pixels = random.integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(file, "JPEG")
    return file.getvalue()


def test_lakes_of_all_kinds_and_resumed_runs_give_equal_labels(
    tmp_path: Path, weights: str
) -> None:
    files = {f"{number:02}": noise(number) for number in range(6)}
    photos, tables = tmp_path / "photos", tmp_path / "tables"
    photos.mkdir()
    tables.mkdir()
    for name, content in files.items():
        (photos / f"{name}.jpg").write_bytes(content)
    write_tar(tmp_path / "one.tar", {f"{name}.jpg": content for name, content in files.items()})
    table = pa.table({"id": list(files), "image": list(files.values())})
    pq.write_table(table, tables / "0.parquet")

    found = []
    for number, source in enumerate((photos, tmp_path / "one.tar", tables)):
        output = tmp_path / f"out-{number}"
        assert label(tiny_options(source, output, weights, **TILES)) == 0
        found.append(bits(output))
    assert found[0] == found[1] == found[2] and len(found[0]) == len(files)

    killed = tmp_path / "killed"
    kill_before_publishing(source=photos, output=killed, weights=weights, **TILES)
    (plan,) = killed.glob("_staging/*/plan.parquet")
    blocks = sorted((plan.parent / "blocks").iterdir())
    for block in blocks[::2]:
        block.unlink()
    (killed / paths.LOCK).unlink(missing_ok=True)
    assert label(tiny_options(photos, killed, weights, **TILES)) == 0
    assert bits(killed) == found[0]


def write_scenes(folder: Path) -> Path:
    """Render large scenes of small shapes; return their annotation file."""
    images = folder / "scenes"
    images.mkdir()
    entries = []
    for number in range(SCENES):
        random = np.random.default_rng([77, number])
        scene = render_scene(random, SIDE, SIDE, MOST, EXTENTS)
        path = images / f"{number}.png"
        Image.fromarray(scene.pixels).save(path, compress_level=1)
        annotations = [
            NewAnnotation(
                kind, (left, top, right - left, bottom - top), (right - left) * (bottom - top)
            )
            for kind, (left, top, right, bottom) in zip(
                scene.labels.tolist(), scene.boxes.tolist(), strict=True
            )
        ]
        entries.append(NewImage(str(path), SIDE, SIDE, annotations))
    truth = folder / "truth.json"
    with truth.open("w") as file:
        classes = [Category(number, name) for number, name in enumerate(SHAPES) if name]
        write_annotations(file, classes, entries)
    return truth


def test_small_objects_are_found_that_are_lost_without_tiles(tmp_path: Path) -> None:
    truth = write_scenes(tmp_path)
    found = []
    for number, tile in enumerate((None, 1333, 700)):
        output = tmp_path / f"out-{number}"
        options = LabelOptions(
            str(tmp_path / "scenes"),
            str(output),
            model="shapes-tiny",
            score_threshold=0.0,
            precision="fp32",
            page=False,
            tile=tile,
        )
        assert label(options) == 0
        found.append(evaluate(str(output), str(truth))["metrics"])
        print(tile, {name: round(value, 3) for name, value in found[-1].items()})
    whole, coarse, fine = found
    assert whole["AP"] < 0.35 < 0.55 < coarse["AP"] < 0.68 < fine["AP"]
    assert whole["AP_S"] < 0.02 and fine["AP_S"] > 0.25
