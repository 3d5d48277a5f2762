"""The demo lake: every scene stored once, readable, displayed as rendered, and in the truth."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from PIL import Image, ImageOps
from pycocotools.coco import COCO

from jobs.demo.lake import PARQUET, STAMP, TAR, write_lake
from jobs.demo.scenes import SHAPES, scene

COUNT, SEED = 20, 11


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "lake"
    assert write_lake(folder, COUNT, SEED) == folder.parent / "truth.json"
    return folder


def read_loose_files(lake: Path) -> dict[str, bytes]:
    return {
        LocalFileSystem().unstrip_protocol(str(path)): path.read_bytes()
        for path in lake.glob("photos/*/*")
    }


def read_tar_members(lake: Path) -> dict[str, bytes]:
    url = LocalFileSystem().unstrip_protocol(str(lake / TAR))
    with tarfile.open(lake / TAR) as tar:
        members = {member.name: tar.extractfile(member) for member in tar}
        return {
            f"{url}#{name.removesuffix('.jpg')}": stream.read()
            for name, stream in members.items()
            if stream and name.endswith(".jpg") and name.replace(".jpg", ".json") in members
        }


def read_parquet_rows(lake: Path) -> dict[str, bytes]:
    url = LocalFileSystem().unstrip_protocol(str(lake / PARQUET))
    column = pq.read_table(lake / PARQUET)["image"].to_pylist()
    return {f"{url}#{row}": data for row, data in enumerate(column)}


@pytest.mark.parametrize(
    ("read_images", "expected"),
    [(read_loose_files, 10), (read_tar_members, 5), (read_parquet_rows, 5)],
)
def test_images_display_as_the_truth_says(
    lake: Path, read_images: Callable[[Path], dict[str, bytes]], expected: int
) -> None:
    truth = json.loads((lake.parent / "truth.json").read_text())
    by_name = {image["file_name"]: image for image in truth["images"]}
    assert len(by_name) == COUNT
    images = read_images(lake)
    assert len(images) == expected
    for image_id, data in images.items():
        image = by_name[image_id]
        displayed = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert displayed.size == (image["width"], image["height"])
        rendered = scene(SEED, image["id"] - 1)
        difference = np.abs(np.asarray(displayed, np.int16) - rendered.pixels)
        assert difference.mean() < 6  # a wrong orientation or a wrong scene differs far more


def test_loose_files_are_of_all_kinds(lake: Path) -> None:
    paths = list(lake.glob("photos/*/*"))
    assert {path.suffix for path in paths} == {".jpg", ".jpeg", ".png", ".webp"}
    orientations = {Image.open(path).getexif().get(0x0112, 1) for path in paths}
    assert orientations == {1, 3, 6, 8}


def test_truth_is_coco(lake: Path) -> None:
    coco = COCO(str(lake.parent / "truth.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(SHAPES[1:])
    for image_id in coco.getImgIds():
        rendered = scene(SEED, image_id - 1)
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        boxes = np.array([annotation["bbox"] for annotation in annotations])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_array_equal(boxes, rendered.boxes)
        assert [a["category_id"] for a in annotations] == rendered.labels.tolist()
        assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in annotations)


def test_a_second_call_leaves_the_lake_alone(lake: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in lake.rglob("*")}
    write_lake(lake, COUNT, SEED)
    assert {path: path.stat().st_mtime_ns for path in lake.rglob("*")} == before


@pytest.mark.slow
def test_another_set_replaces_the_lake_and_is_repeatable(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "lake", tmp_path / "b" / "lake"
    first.parent.mkdir()
    second.parent.mkdir()
    write_lake(first, 2, SEED)
    write_lake(first, 4, SEED + 1)
    write_lake(second, 4, SEED + 1)
    files = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
    assert len(files) == 5  # two loose files, the tar, the Parquet file, the stamp
    for path in files:
        same = (first / path).read_bytes() == (second / path).read_bytes()
        assert same or path.name == STAMP


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="not a demo lake"):
        write_lake(tmp_path, 2, SEED)
    assert (tmp_path / "mine.txt").read_text() == "keep"
