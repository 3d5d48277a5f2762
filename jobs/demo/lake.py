"""The demo's image lake: rendered scenes in the formats of photos, and their truth beside it."""

import io
import json
import multiprocessing
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ExifTags, Image

from jobs.coco.records import Category
from jobs.coco.writer import NewAnnotation, NewImage, write_annotations
from jobs.demo.scenes import SHAPES, Scene, scene

VERSION = 1  # version of the lake's layout and scenes; a lake of another version is written anew
STAMP = ".demo-lake.json"
TRUTH = "truth.json"
TAR = "shards/scenes-000000.tar"
PARQUET = "tables/scenes.parquet"

# Suffix and EXIF orientation of loose files, which take turns. Half of the scenes are loose files,
# a quarter are members of the tar and a quarter are rows of the Parquet file, both as JPEG.
LOOSE = (
    (".jpg", 1),
    (".png", 1),
    (".jpg", 6),
    (".webp", 1),
    (".jpg", 1),
    (".jpg", 3),
    (".jpeg", 1),
    (".jpg", 8),
)
# Rotation of the stored pixels; a viewer that follows the EXIF orientation shows them upright.
TURNS = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
ENCODING: dict[str, dict[str, Any]] = {
    ".jpg": {"format": "JPEG", "quality": 92},
    ".jpeg": {"format": "JPEG", "quality": 92},
    ".png": {"format": "PNG", "compress_level": 1},
    ".webp": {"format": "WEBP", "quality": 90, "method": 2},
}


@dataclass(frozen=True)
class _Photo:
    """An encoded scene and its truth."""

    index: int
    suffix: str
    data: bytes
    scene: Scene


@dataclass(frozen=True)
class _Stamp:
    """What a finished lake was made from. The folder is part of it: image ids are absolute URLs."""

    folder: str
    count: int
    seed: int
    version: int = VERSION


def write_lake(folder: Path, count: int, seed: int) -> Path:
    """Write `count` scenes of the set `seed` to `folder`; return their COCO annotation file.

    The annotation file is `truth.json` in the folder's parent. Its `file_name`s are the image ids
    of a labelling run of `folder`, and its category ids index `SHAPES`. A folder that holds this
    very set is left as it is; one that holds another such set is replaced.

    Raises:
        ValueError: `folder` holds files that are not a demo lake.
    """
    folder = folder.resolve()
    stamp, truth_file = _Stamp(str(folder), count, seed), folder.parent / TRUTH
    found = _stamp_of(folder)
    if found == asdict(stamp) and truth_file.exists():
        return truth_file
    if found is None and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files that are not a demo lake: pass an empty folder")

    partial_folder = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    categories = [Category(index, name) for index, name in enumerate(SHAPES) if name]
    with (partial_folder / TRUTH).open("w", encoding="utf-8") as file:
        write_annotations(file, categories, _fill(partial_folder, f"file://{folder}", count, seed))
    (partial_folder / TRUTH).replace(truth_file)
    (partial_folder / STAMP).write_text(json.dumps(asdict(stamp)))
    if folder.exists():
        shutil.rmtree(folder)
    partial_folder.rename(folder)
    return truth_file


def _stamp_of(folder: Path) -> dict[str, object] | None:
    stamp_file = folder / STAMP
    return json.loads(stamp_file.read_text()) if stamp_file.exists() else None


def _fill(folder: Path, url: str, count: int, seed: int) -> Iterator[NewImage]:
    """Write the lake's files to `folder`; yield the truth, with image ids below `url`."""
    for path in (TAR, PARQUET):
        (folder / path).parent.mkdir(parents=True)
    rows: list[bytes] = []
    with (
        ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool,
        tarfile.open(folder / TAR, "w") as tar,
    ):
        for photo in pool.map(partial(_take_photo, seed), range(count), chunksize=4):
            quarter = photo.index % 4
            if quarter == 3:
                image_id = f"{url}/{PARQUET}#{len(rows)}"
                rows.append(photo.data)
            elif quarter == 2:
                image_id = f"{url}/{TAR}#{_add_to_tar(tar, photo)}"
            else:
                image_id = f"{url}/{_write_file(folder, photo)}"
            yield _image(image_id, photo.scene)
    pq.write_table(pa.table({"image": pa.array(rows, pa.binary())}), folder / PARQUET)


def _take_photo(seed: int, index: int) -> _Photo:
    suffix, orientation = ".jpg", 1
    if index % 4 < 2:
        suffix, orientation = LOOSE[(index // 4 * 2 + index % 4) % len(LOOSE)]
    taken = scene(seed, index)
    return _Photo(index, suffix, _encode(taken, suffix, orientation), taken)


def _encode(taken: Scene, suffix: str, orientation: int) -> bytes:
    """Encode a scene as an image file that displays as the scene."""
    image, options = Image.fromarray(taken.pixels), ENCODING[suffix]
    if orientation != 1:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image, options = image.transpose(TURNS[orientation]), {**options, "exif": exif}
    encoded = io.BytesIO()
    image.save(encoded, **options)
    return encoded.getvalue()


def _write_file(folder: Path, photo: _Photo) -> str:
    """Write a loose file, and return its path below `folder`."""
    path = f"photos/album-{photo.index // 40:02d}/scene-{photo.index:05d}{photo.suffix}"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(photo.data)
    return path


def _add_to_tar(tar: tarfile.TarFile, photo: _Photo) -> str:
    """Add a webdataset sample, `.jpg` and `.json`, and return its key."""
    key = f"scene-{photo.index:05d}"
    height, width, _ = photo.scene.pixels.shape
    metadata = json.dumps({"width": width, "height": height}).encode()
    for suffix, data in ((photo.suffix, photo.data), (".json", metadata)):
        member = tarfile.TarInfo(key + suffix)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return key


def _image(image_id: str, taken: Scene) -> NewImage:
    """Make an image of the truth, with its boxes."""
    height, width, _ = taken.pixels.shape
    annotations = []
    for (x_min, y_min, x_max, y_max), label in zip(
        taken.boxes.tolist(), taken.labels.tolist(), strict=True
    ):
        w, h = x_max - x_min, y_max - y_min
        annotations.append(NewAnnotation(label, (x_min, y_min, w, h), w * h))
    return NewImage(image_id, width, height, annotations)
