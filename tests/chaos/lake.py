"""Images, lakes and files of detections that runs of tests label or import."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def encoded_image(seed: int, kind: str = "PNG") -> bytes:
    """An encoded image of 80 x 60, between noise and a photo."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def image_of_one_colour(colour: tuple[int, int, int]) -> bytes:
    """An image that a detector may react to (`PIXEL_FAULTS` of injected/sitecustomize.py)."""
    file = io.BytesIO()
    Image.new("RGB", (80, 60), colour).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path, seeds: Iterable[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / f"{seed:04}.png").write_bytes(encoded_image(seed))


def write_tar(path: Path, seeds: Iterable[int]) -> None:
    with tarfile.open(path, "w") as archive:
        for seed in seeds:
            content, entry = encoded_image(seed), tarfile.TarInfo(f"{seed:04}.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def write_parquet(path: Path, seeds: Iterable[int]) -> None:
    found = list(seeds)
    table = {"id": [str(seed) for seed in found], "image": [encoded_image(s) for s in found]}
    pq.write_table(pa.table(table), path, row_group_size=2)


def write_night(lake: Path, night: int) -> None:
    """Add what is new in one of three nights: four images, a tar, and both loose files and rows."""
    if night == 1:
        write_images(lake, range(4))
    elif night == 2:
        write_tar(lake / "b.tar", range(10, 13))
    else:
        write_images(lake, range(20, 22))
        write_parquet(lake / "c.parquet", range(30, 33))


def write_detections(folder: Path, name: str, version: int) -> list[str]:
    """Detections of ten images, of which a version has five in common with the version before.

    Returns the arguments of `import` besides OUTPUT, the detections first.
    """
    first = 5 * version
    names = [f"{name}-{index:03}.jpg" for index in range(first, first + 10)]
    images = [{"id": i, "file_name": n, "width": 100, "height": 80} for i, n in enumerate(names)]
    truth = {"images": images, "annotations": [], "categories": CATEGORIES}
    boxes = [
        {"image_id": i, "category_id": 1 + k % 2, "bbox": [k, version, 5 + k, 9], "score": 0.5}
        for i in range(10)
        for k in range(i % 4)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    detections, annotations = folder / f"{name}.json", folder / f"{name}-truth.json"
    detections.write_text(json.dumps(boxes))
    annotations.write_text(json.dumps(truth))
    return [str(detections), "--annotations", str(annotations), "--model", "other"]
