"""Real photos give equal rows from a folder, a tar, a Parquet file or S3; all models label them."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.label.label import label
from jobs.label.options import LabelOptions
from jobs.output.views import connect
from model.named import MODELS, TORCHVISION
from pipeline.storage.files import open_location

pytestmark = pytest.mark.usefixtures("local_ray")

# The name of an image's file without its suffix, however the images are packed.
KEY = "regexp_extract(image_id, '([^/#]+?)(\\.jpg)?$', 1)"
IMAGES = f"SELECT {KEY} AS key, status, width, height, num_detections FROM images ORDER BY key"
BOXES = (
    f"SELECT {KEY} AS key, detection, label_id, score, x_min, y_min, x_max, y_max "
    "FROM detections ORDER BY key, detection"
)


@pytest.fixture(scope="module")
def photos(testdata: Path) -> Path:
    folder = testdata / "coco" / "images" / "val2017"
    assert len(list(folder.glob("*.jpg"))) == 55
    return folder


def as_tar(photos: Path, folder: Path, bucket: str) -> str:
    with tarfile.open(folder / "photos.tar", "w") as archive:
        for photo in sorted(photos.iterdir()):
            archive.add(photo, photo.name)
    return str(folder / "photos.tar")


def as_parquet(photos: Path, folder: Path, bucket: str) -> str:
    files = sorted(photos.iterdir())
    columns = {"id": [f.stem for f in files], "image": [f.read_bytes() for f in files]}
    pq.write_table(pa.table(columns), folder / "photos.parquet", row_group_size=20)
    return str(folder / "photos.parquet")


def as_bucket(photos: Path, folder: Path, bucket: str) -> str:
    fs, path = open_location(bucket, "INPUT")
    for photo in photos.iterdir():
        fs.put_file(str(photo), f"{path}/{photo.name}")
    return bucket


def label_and_read(source: str, output: Path, **options: Any) -> tuple[list[Any], list[Any]]:
    """Label `source`; return the rows of both tables, sorted by image."""
    assert label(LabelOptions(source, str(output), precision="fp32", **options)) == 0
    database = connect(str(output))
    return database.sql(IMAGES).fetchall(), database.sql(BOXES).fetchall()


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    output = tmp_path_factory.mktemp("expected") / "out"
    return label_and_read(str(photos), output, model="shapes-tiny", score_threshold=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("pack", [as_tar, as_parquet, as_bucket])
def test_rows_are_equal_however_photos_are_packed(
    pack: Callable[[Path, Path, str], str],
    photos: Path,
    expected: tuple[list[Any], list[Any]],
    tmp_path: Path,
    bucket: str,
) -> None:
    source = pack(photos, tmp_path, bucket)
    images, boxes = label_and_read(
        source, tmp_path / "out", model="shapes-tiny", score_threshold=0.0
    )
    assert len(images) == 55
    assert {row[1] for row in images} == {"ok"}
    assert images == expected[0]
    assert len(boxes) == len(expected[1])
    for found, wanted in zip(boxes, expected[1], strict=True):
        assert found[:3] == wanted[:3]
        assert found[3:] == pytest.approx(wanted[3:], abs=1e-2, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for name in MODELS if name != "shapes-tiny"])
def test_every_variant_labels_photos(model: str, photos: Path, tmp_path: Path) -> None:
    """Random weights find outputs without a name too, which are no boxes; some find nothing."""
    options = {"model": model, "weights": "random", "score_threshold": 0.0, "limit": 6}
    images, boxes = label_and_read(str(photos), tmp_path / "out", **options)
    assert len(images) == 6
    assert {row[1] for row in images} == {"ok"}
    assert all(row[4] <= 100 for row in images) and len(boxes) == sum(row[4] for row in images)
    assert boxes or MODELS[model].source == TORCHVISION
