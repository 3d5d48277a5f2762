"""Images for pages come from files, archives and S3; images that cannot be had have a reason."""

import io
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.report import pictures
from jobs.report.pictures import PictureReader, Place, plan_of_shards, read_plan_of_run
from model.resize import ResizeRule
from pipeline.plan.plan import plan_shards
from pipeline.schema import UNSEEN, Member, Shard
from pipeline.storage.files import join, open_location
from tests.support.committed import commit_run, make_target

SIZE = ResizeRule(shorter=40, longest=80)


def encode_jpeg(shade: int, orientation: int = 1) -> bytes:
    """Encode an image of 80 x 40 pixels: its left half is black, its right half has this shade."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 40:] = shade
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def write_lake(folder: Path) -> None:
    (folder / "turned.jpg").write_bytes(encode_jpeg(250, orientation=6))
    (folder / "plain.jpg").write_bytes(encode_jpeg(200))
    (folder / "broken.jpg").write_bytes(encode_jpeg(90)[:300])
    with tarfile.open(folder / "many.tar", "w") as archive:
        for number in range(6):
            info = tarfile.TarInfo(f"{number}.jpg")
            data = encode_jpeg(100 + 20 * number)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    rows = pa.table({"image": [encode_jpeg(60), encode_jpeg(80)]})
    pq.write_table(rows, folder / "rows.parquet")


def shades(found: list[pictures.FetchedImage]) -> list[int | None]:
    """Return the brightest corner of each image, rounded to tens; None if it is missing."""
    corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
    return [
        None if one.pixels is None else round(max(one.pixels[c].mean() for c in corners), -1)
        for one in found
    ]


def places_of(shards: list[Shard]) -> list[Place]:
    wanted = {"files": [0, 1, 2], "tar": [1, 4], "parquet": [1]}
    return [Place(shard, k) for shard in shards for k in wanted[shard.kind]]


def check_images(found: list[pictures.FetchedImage], shards: list[Shard]) -> None:
    by_kind = dict(zip([(p.shard.kind, p.index) for p in places_of(shards)], found, strict=True))
    names = [m.uri.rsplit("/", 1)[1] for s in shards if s.kind == "files" for m in s.members]
    files = {name: by_kind["files", k] for k, name in enumerate(names)}
    assert shades([files["turned.jpg"], files["plain.jpg"]]) == [250, 200]
    assert files["turned.jpg"].pixels is not None
    assert files["turned.jpg"].pixels.shape == (80, 40, 3)
    assert files["broken.jpg"].pixels is None
    assert files["broken.jpg"].why.startswith(("truncated", "undecodable"))
    assert shades([by_kind["tar", 1], by_kind["tar", 4], by_kind["parquet", 1]]) == [120, 180, 80]


def test_images_of_files_and_archives_come_in_the_requested_order(tmp_path: Path) -> None:
    write_lake(tmp_path)
    shards = list(plan_shards(str(tmp_path)).shards)
    with PictureReader(SIZE, seconds=60) as reader:
        check_images(reader.fetch(places_of(shards)), shards)
        again = reader.fetch(places_of(shards)[::-1])  # the same processes serve once more
        check_images(again[::-1], shards)


@pytest.mark.slow
def test_images_come_from_s3_by_the_plan_of_a_finished_run(tmp_path: Path, bucket: str) -> None:
    write_lake(tmp_path)
    fs, path = open_location(bucket, "INPUT")
    for file in tmp_path.iterdir():
        fs.put_file(str(file), f"{path}/lake/{file.name}")
    plan = plan_shards(f"{bucket}/lake").shards
    plan.write_to(join(bucket, "out/_runs/1/plan.parquet"))
    shards = list(plan)
    commit_run(make_target(f"{bucket}/out", "1"), f"{bucket}/lake", [], {})
    planned = read_plan_of_run(f"{bucket}/out", "1")
    assert sorted(planned.archives) == sorted(plan_of_shards(plan).archives)
    found = planned.find([shard.shard for shard in shards])
    assert list(found.values()) == shards
    with PictureReader(SIZE, seconds=60) as reader:
        check_images(reader.fetch(places_of(list(found.values()))), shards)


@pytest.mark.slow
def test_objects_without_a_planned_version_are_read_as_they_are(tmp_path: Path) -> None:
    write_lake(tmp_path)
    members = [
        Member(f"file://{tmp_path}/{name}", UNSEEN, -1) for name in ("plain.jpg", "absent.jpg")
    ]
    places = [Place(Shard(member.uri, "files", (member,)), 0) for member in members]
    with PictureReader(SIZE, seconds=60) as reader:
        plain, absent = reader.fetch(places)
    assert shades([plain, absent]) == [200, None]
    assert "does not exist" in absent.why


def test_removed_changed_and_too_large_files_have_a_reason(tmp_path: Path) -> None:
    write_lake(tmp_path)
    shards = {shard.kind: shard for shard in plan_shards(str(tmp_path)).shards}
    for member in shards["files"].members:
        Path(member.uri.removeprefix("file://")).unlink()
    (tmp_path / "plain.jpg").write_bytes(encode_jpeg(10) + b"more")
    huge = Shard("huge", "files", (Member("file:///none", "", pictures.MOST_BYTES + 1),))
    places = [*(Place(shards["files"], k) for k in range(3)), Place(huge, 0)]
    with PictureReader(SIZE, seconds=60) as reader:
        found = reader.fetch([*places, Place(shards["tar"], 99)])
    assert all(one.pixels is None for one in found)
    assert sum(one.why.startswith("changed:") for one in found[:3]) == 1
    assert sum("does not exist" in one.why for one in found[:3]) == 2
    assert "more than 32 MiB" in found[3].why
    assert "no more" in found[4].why


@pytest.mark.slow
def test_a_source_that_stalls_costs_a_bounded_time(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "stuck.jpg")  # opening it waits for a writer for ever
    stuck = Shard("s", "files", (Member(f"file://{tmp_path}/stuck.jpg", "", 100),))
    with PictureReader(SIZE, seconds=1.0) as reader:
        reader._wait()
        began = time.monotonic()
        (found,) = reader.fetch([Place(stuck, 0)])
    assert found.pixels is None
    assert time.monotonic() - began < 5.0


@pytest.mark.slow
def test_an_unreachable_store_has_a_reason_and_does_not_stop_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETR_BATCH_STORE_PATIENCE", "0.5")  # seconds
    write_lake(tmp_path)
    (tar,) = [shard for shard in plan_shards(str(tmp_path)).shards if shard.kind == "tar"]
    away = Shard("s", "files", (Member("http://127.0.0.1:9/a.jpg", "", 100),))  # nobody listens
    with PictureReader(SIZE, seconds=60) as reader:
        found = reader.fetch([Place(away, 0), Place(tar, 1)])
    assert "cannot be reached" in found[0].why
    assert shades(found) == [None, 120]
