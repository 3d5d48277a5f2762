"""Detectors of other kinds label photos from a folder, a tar and Parquet, killed and resumed."""

import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.label.label import label
from jobs.label.options import LabelOptions
from jobs.output import paths
from jobs.output.views import connect
from pipeline.storage.errors import InputError
from tests.support.detectors import model_of_kind

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def rows(output: Path) -> dict[str, Any]:
    """Status and boxes of each image, by the last part of its name."""
    with closing(connect(str(output))) as database:
        boxes = database.sql(
            "SELECT regexp_extract(image_id, '[^/#]+$'), list({'label': label_id, 'score': score, "
            "'x': x_min, 'y': y_min, 'x_': x_max, 'y_': y_max} ORDER BY detection) "
            "FROM detections GROUP BY 1"
        ).fetchall()
        images = database.sql(
            "SELECT regexp_extract(image_id, '[^/#]+$'), status FROM images"
        ).fetchall()
    found = dict(boxes)
    return {name.removesuffix(".jpg"): (status, found.get(name)) for name, status in images}


@pytest.mark.parametrize("kind", ["detr", "faster-rcnn", "hf"])
def test_rows_are_equal_however_photos_are_packed(kind: str, folder: Path, testdata: Path) -> None:
    photos = sorted((testdata / "coco" / "images").rglob("*.jpg"))
    assert len(photos) == 55
    photos = photos[:6] if kind == "faster-rcnn" else photos  # it takes seconds for each
    lake = folder / "lake"
    lake.mkdir()
    for photo in photos:
        (lake / photo.name).write_bytes(photo.read_bytes())
    model, weights = model_of_kind(kind, folder)
    output = iter(folder / f"out-{number}" for number in range(9))

    def options(source: Path, target: Path) -> LabelOptions:
        return LabelOptions(
            str(source), str(target), model=model, weights=weights, score_threshold=0.0,
            precision="fp32", page=False,
        )  # fmt: skip

    def labelled(source: Path) -> dict[str, Any]:
        target = next(output)
        assert label(options(source, target)) == 0
        return rows(target)

    expected = labelled(lake)
    assert len(expected) == len(photos)
    assert {status for status, _ in expected.values()} == {"ok"}
    assert all(boxes for _, boxes in expected.values())
    with tarfile.open(folder / "one.tar", "w") as archive:
        for photo in reversed(photos):
            archive.add(photo, photo.name)
    assert labelled(folder / "one.tar") == expected
    table = {"id": [p.stem for p in photos], "image": [p.read_bytes() for p in photos]}
    pq.write_table(pa.table(table), folder / "photos.parquet", row_group_size=9)
    assert labelled(folder / "photos.parquet") == expected

    killed = next(output)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.label.label.publish_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            label(options(lake, killed))
    (plan,) = killed.glob("_staging/*/plan.parquet")
    for block in sorted((plan.parent / "blocks").iterdir())[::2]:
        block.unlink()
    (killed / paths.LOCK).unlink(missing_ok=True)
    assert label(options(lake, killed)) == 0
    assert rows(killed) == expected


def test_a_precision_that_is_not_offered_ends_before_anything_is_written(
    folder: Path, testdata: Path
) -> None:
    options = LabelOptions(
        str(testdata / "coco" / "images"), str(folder / "out"), model="detr", weights="random",
        precision="int8",
    )  # fmt: skip
    with pytest.raises((ValueError, InputError), match="detr has no precision 'int8'"):
        label(options)
    assert not (folder / "out").exists()
