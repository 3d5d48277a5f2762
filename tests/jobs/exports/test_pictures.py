"""Images beside their labels: the same bytes, under names by which tools find the labels."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.output.run_documents import write_table
from pipeline.plan.shards import table_of_shards
from pipeline.schema import Member, Shard
from pipeline.storage.files import open_location
from tests.jobs.exports.lake import (
    by_image_id,
    etag,
    label_by_hand,
    write_labelled_lake,
    write_lake,
)
from tests.support.labelled import LABELS, Labelled, random_boxes, write_run
from tests.support.samples import jpeg, write_tar


@pytest.fixture
def lake(tmp_path: Path) -> str:
    (tmp_path / "lake").mkdir()
    return f"file://{tmp_path}/lake"


@pytest.fixture
def written(tmp_path: Path) -> dict[str, bytes]:
    """The bytes of the images of a labelled lake, by their ids."""
    return write_labelled_lake(tmp_path)


def export(tmp_path: Path, to: str, *options: str) -> int:
    return main(["export", str(tmp_path / "out"), str(tmp_path / "made"), "--to", to, *options])


def labels_by_ultralytics(picture: Path) -> Path:
    """Return where Ultralytics looks for the labels of an image."""
    before, _, after = str(picture).rpartition("/images/")
    return Path(f"{before}/labels/{after.rpartition('.')[0]}.txt")


@pytest.mark.parametrize("option", ["--with-images", "--link-images"])
@pytest.mark.parametrize(
    ("to", "folder"), [("yolo", "images"), ("voc", "JPEGImages"), ("coco", "images")]
)
def test_images_lie_beside_their_labels(
    to: str, folder: str, option: str, written: dict[str, bytes], tmp_path: Path
) -> None:
    assert export(tmp_path, to, option) == 0
    rows = by_image_id(tmp_path / "made")
    assert rows.keys() == written.keys()
    for image_id, row in rows.items():
        picture = tmp_path / "made" / folder / row["picture"]
        assert picture.read_bytes() == written[image_id]
        assert picture.is_symlink() == (option == "--link-images" and "#" not in image_id)
        assert picture.suffix.lower() in (".jpg", ".jfif") and len(picture.name.encode()) < 255
        if to == "yolo":
            assert picture.suffix != ".jfif"
            assert labels_by_ultralytics(picture) == tmp_path / "made" / row["file"]
        assert (tmp_path / "made" / row["file"]).exists()
    found = [path for path in (tmp_path / "made" / folder).rglob("*.*") if path.is_file()]
    assert len([path for path in found if not path.name.startswith(".")]) == len(written)


@pytest.mark.parametrize("option", ["--with-images", "--link-images"])
def test_what_is_not_as_it_was_labelled_is_left_out_and_named(
    option: str, written: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lake/a.jpg").write_bytes(jpeg(99, quality=30))
    (tmp_path / "lake/no-suffix").unlink()
    (tmp_path / "lake/s.tar").unlink()
    assert export(tmp_path, "yolo", option) == 0
    said = capsys.readouterr().err
    assert "8 boxes of 4 images" in said
    assert "images that cannot be had as they were labelled are left out with their boxes" in said
    assert f"1 changed (file://{tmp_path}/lake/a.jpg: " in said
    assert "4 unreadable (" in said
    assert len(by_image_id(tmp_path / "made")) == 4
    assert len(list((tmp_path / "made/labels").rglob("*.txt"))) == 4
    assert len(list((tmp_path / "made/images").rglob("[!.]*.*"))) == 4


@pytest.mark.parametrize("option", ["--with-images", "--link-images"])
def test_an_image_in_a_store_that_does_not_answer_is_left_out(
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The store of other images is the disk, which answers."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    uris = (f"file://{tmp_path}/a.jpg", "s3://bucket/b.jpg")
    etags = (etag(uris[0]), "e")
    images = [
        Labelled(uri, random_boxes(1, 2), etag=tag) for uri, tag in zip(uris, etags, strict=True)
    ]
    write_run(tmp_path / "out", images, LABELS)
    assert export(tmp_path, "yolo", option) == 0
    assert "1 unavailable (s3://bucket/b.jpg: no credentials" in capsys.readouterr().err
    assert by_image_id(tmp_path / "made").keys() == {uris[0]}


def test_an_export_without_any_image_fails_and_leaves_nothing(
    written: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.rename(tmp_path / "lake", tmp_path / "moved")
    before = sorted(tmp_path.iterdir())
    assert export(tmp_path, "yolo", "--with-images") == 1
    assert "no image can be put beside the labels: 9 unreadable (" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_images_of_a_user_are_not_deleted(
    written: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tmp_path, "yolo") == 0
    assert f"the images belong into {tmp_path}/made/images" in capsys.readouterr().err
    mine = tmp_path / "made/images/mine.jpg"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    assert export(tmp_path, "yolo", "--with-images", "--overwrite") == 2
    assert "holds images/mine.jpg, which its images.csv does not list" in capsys.readouterr().err
    assert export(tmp_path, "yolo", "--overwrite") == 0
    assert mine.read_bytes() == b"mine"


def test_images_of_an_earlier_export_go_with_its_labels(
    written: dict[str, bytes], tmp_path: Path
) -> None:
    assert export(tmp_path, "yolo", "--link-images") == 0
    assert export(tmp_path, "yolo", "--overwrite") == 0
    assert not (tmp_path / "made/images").exists()
    assert (tmp_path / "lake/a.jpg").exists()


def test_images_of_parquet_rows(lake: str, tmp_path: Path) -> None:
    rows = {"one": jpeg(1), "images/two": jpeg(2), "three": jpeg(3)}
    table = pa.table({"image": list(rows.values()), "id": list(rows)})
    pq.write_table(table, tmp_path / "lake/t.parquet")
    url = f"{lake}/t.parquet"
    images = [Labelled(key, random_boxes(1, 2), "ok", url, url, etag(url)) for key in rows]
    write_run(tmp_path / "out", images, LABELS, source=lake)
    (plan,) = (tmp_path / "out/_runs").rglob("plan.parquet")
    shard = Shard(url, "parquet", (Member(url, etag(url), -1),))
    write_table(str(plan), table_of_shards([shard]))
    assert export(tmp_path, "yolo", "--with-images") == 0
    for image_id, row in by_image_id(tmp_path / "made").items():
        picture = tmp_path / "made/images" / row["picture"]
        assert picture.read_bytes() == rows[image_id]
        assert labels_by_ultralytics(picture) == tmp_path / "made" / row["file"]


def test_an_archive_whose_images_moved_is_noticed(
    written: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The version is the same, as where a store tells none; the members are others."""
    tar = tmp_path / "lake/s.tar"
    moved = {f"{name}.jpg": jpeg(20) for name in ("one", "zero")}
    before = tar.stat()
    write_tar(tar, moved)
    os.truncate(tar, before.st_size)
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert export(tmp_path, "yolo", "--with-images") == 0
    assert "2 changed (" in capsys.readouterr().err


@pytest.mark.slow
def test_images_come_from_and_go_to_a_bucket(bucket: str, tmp_path: Path) -> None:
    lake, output = f"{bucket}/lake", f"{bucket}/out"
    written = write_lake(lake)
    label_by_hand(output, lake)
    options = ["--to", "yolo", "--with-images"]
    for made in (f"{bucket}/made", str(tmp_path / "made")):
        assert main(["export", output, made, *options]) == 0
    rows = by_image_id(tmp_path / "made")
    fs, path = open_location(f"{bucket}/made", "FILE")
    assert rows.keys() == written.keys()
    for image_id, row in rows.items():
        assert (tmp_path / "made/images" / row["picture"]).read_bytes() == written[image_id]
        assert fs.cat_file(f"{path}/images/{row['picture']}") == written[image_id]
    assert main(["export", output, f"{bucket}/made", *options, "--overwrite"]) == 0
    assert main(["export", output, f"{bucket}/more", "--to", "yolo", "--link-images"]) == 2


@pytest.mark.parametrize("to", ["csv", "labelstudio"])
def test_formats_of_one_file_take_no_images(
    to: str, written: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tmp_path, to, "--with-images") == 2
    said = capsys.readouterr().err
    assert f"--with-images: {to} is one file; yolo and voc are folders, and coco is one" in said
