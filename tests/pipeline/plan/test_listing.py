"""What a lake holds is planned, or counted with the reason why it is left out."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.output.paths import LOCK, OtherOutputs
from pipeline.plan import contents
from pipeline.plan.listing import (
    CONTAINER,
    HIDDEN,
    MARKER,
    NO_IMAGE,
    NO_PACKAGE,
    OTHER_FORMAT,
    OTHER_OUTPUT,
    UNCOMMITTED,
    WITHIN_OUTPUT,
    kind_of,
)
from pipeline.plan.plan import plan_shards
from pipeline.storage.files import InputError, open_location
from tests.support.labelled import Labelled, write_run
from tests.support.samples import encoded, jpeg
from tests.support.web import QuietHandler, served


def planned(source: str | Path) -> tuple[set[str], dict[str, int]]:
    """The names below `source` that are planned, and what is left out, by reason."""
    found = plan_shards(str(source))
    base = f"{source}/" if "://" in str(source) else f"file://{source}/"
    names = {m.uri.removeprefix(base) for shard in found.shards for m in shard.members}
    return names, found.left_out


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", "files"),
        ("A.JPEG", "files"),
        ("a.jpg?versionId=3", "files"),
        ("a.jpg?x=1#y", "files"),
        ("a.qoi", "files"),
        ("a.avif", "files"),
        ("a.mpo", "files"),
        ("a.dng", "files"),
        ("a.tar", "tar"),
        ("a.tar.xz", "tar"),
        ("a.TXZ", "tar"),
        ("a.tar.bz2", "tar"),
        ("a.tar?versionId=3", "tar"),
        ("a.parquet", "parquet"),
        ("a.pq", "parquet"),
        ("a.PQ?versionId=3", "parquet"),
        ("a.zip", CONTAINER),
        ("a.arrow", CONTAINER),
        ("a.txt", NO_IMAGE),
        ("a.json", NO_IMAGE),
        ("Thumbs.db", NO_IMAGE),
        ("desktop.ini", NO_IMAGE),
        ("IMG_0001.jpg.xmp", NO_IMAGE),
    ],
)
def test_kind_of_a_name(name: str, kind: str) -> None:
    for folder in ("file:///lake", "s3://bucket/lake", "https://host"):
        assert kind_of(f"{folder}/{name}", "auto") == kind


def test_folders_with_underscores_are_read(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            "_year=2020/a.jpg": jpeg(),
            "_name/_deeper/b.jpg": jpeg(),
            "_c.jpg": jpeg(),
            "_d.tar": b"",
            "_temporary/0/e.jpg": jpeg(),
            "_SUCCESS": b"",
            "_metadata": b"PAR1",
            ".f/g.jpg": jpeg(),
            "._h.jpg": b"",
            "__MACOSX/i/j.jpg": b"",
        },
    )
    names, left_out = planned(tmp_path)
    assert names == {"_year=2020/a.jpg", "_name/_deeper/b.jpg", "_c.jpg", "_d.tar"}
    assert left_out == {UNCOMMITTED: 1, NO_IMAGE: 2, HIDDEN: 3}


def test_files_without_extension_are_looked_into(tmp_path: Path) -> None:
    images = {name: jpeg() for name in ("4f2a", "IMG 2024.05.01", "a.b c", "photo.", "Icon")}
    others = {
        "LICENSE": b"Permission is hereby granted",
        "Icon\r": b"",
        "Makefile": b"all:\n",
        "x_$folder$": b"",
        "checksums": b"0a1b  4f2a\n",
        "part-00000": b"1,2,3\n",
        "core": b"\x7fELF\x02\x01\x01",
    }
    fill(tmp_path, {**images, **others})
    names, left_out = planned(tmp_path)
    assert names == set(images)
    assert left_out == {NO_IMAGE: 6, MARKER: 1}
    (tmp_path / "list.txt").write_text("LICENSE\n")  # what a list names is a row
    assert planned(tmp_path / "list.txt")[1] == {}
    assert len(plan_shards(str(tmp_path / "LICENSE")).shards) == 1  # and so is INPUT itself


def test_folder_markers_of_object_stores_are_no_images(bucket: str) -> None:
    fs, root = open_location(bucket, "INPUT")
    for key in ("a.jpg", "b/c.jpg", "b/"):
        fs.pipe_file(f"{root}/{key}", b"" if key.endswith("/") else jpeg())
    fs.pipe_file(f"{root}/b_$folder$", b"")
    name, _, prefix = root.partition("/")
    fs.call_s3("put_object", Bucket=name, Key=f"{prefix}/q.jpg?versionId=x", Body=jpeg(1))
    fs.pipe_file(f"{root}/LICENSE", b"text")
    names, left_out = planned(bucket)
    assert names == {"a.jpg", "b/c.jpg", "q.jpg?versionId=x"}
    assert left_out == {MARKER: 2, NO_IMAGE: 1}
    rows = [row for shard in plan_shards(bucket).shards for row in encoded(shard)]
    assert [row["encoded"] for row in rows] == [jpeg(), jpeg(), jpeg(1)]


def test_beyond_a_number_of_looks_names_without_extension_are_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "MOST_HEADS", 2)
    fill(tmp_path, dict.fromkeys("abcde", b"text"))
    names, left_out = planned(tmp_path)
    assert names == {"c", "d", "e"}
    assert left_out == {NO_IMAGE: 2}


def test_what_is_left_out_is_looked_into_again(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": jpeg(), "b": b"not yet"})
    assert planned(tmp_path)[0] == {"a.jpg"}
    fill(tmp_path, {"b": jpeg()})
    assert planned(tmp_path)[0] == {"a.jpg", "b"}


def test_tables_of_another_output_are_no_images(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": jpeg(), "labels/_runs/log/000001.json": b"{}"})
    (tmp_path / "labels" / "images").mkdir()
    pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / "labels" / "images" / "p.parquet")
    names, left_out = planned(tmp_path)
    assert names == {"a.jpg"} and sum(left_out.values()) == 2


@pytest.mark.parametrize(
    ("format", "names", "others"),
    [
        ("images", {"a.jpg", "b.bin", "c"}, 2),
        ("tar", {"t.tar", "b.bin", "c"}, 2),
        ("parquet", {"p.parquet", "b.bin", "c"}, 2),
    ],
)
def test_objects_of_other_formats_than_format_says_are_left_out(
    format: str, names: set[str], others: int, tmp_path: Path
) -> None:
    """They would be failed rows, and no later night would label them."""
    fill(tmp_path, dict.fromkeys(("a.jpg", "b.bin", "c", "t.tar", "z.zip"), b"content"))
    pq.write_table(pa.table({"image": [jpeg()]}), tmp_path / "p.parquet")
    found = plan_shards(str(tmp_path), format=format)
    planned_names = {m.uri.rsplit("/", 1)[-1] for shard in found.shards for m in shard.members}
    assert planned_names == names
    assert found.left_out == {OTHER_FORMAT: others, CONTAINER: 1}
    with pytest.raises(InputError, match="is a folder: name the list in it"):
        plan_shards(str(tmp_path), format="urls")


def test_input_within_output_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"images/a.jpg": jpeg()})
    for source in (tmp_path, tmp_path / "images"):
        with pytest.raises(InputError, match="lies in OUTPUT"):
            plan_shards(str(source), output=str(tmp_path))


def test_images_in_output_are_counted_and_its_own_files_are_not(tmp_path: Path) -> None:
    output = write_run(tmp_path / "labels", [Labelled("file:///x.jpg")], ("", "cat"))
    fill(tmp_path, {"a.jpg": jpeg(), "labels/b.jpg": jpeg(), "labels/sub/c.tar": b"tar"})
    found = plan_shards(str(tmp_path), output=output)
    assert [len(shard.members) for shard in found.shards] == [1]
    assert found.left_out == {WITHIN_OUTPUT: 2}


def test_files_of_another_output_are_named_as_such(tmp_path: Path) -> None:
    write_run(tmp_path / "x" / "labels", [Labelled("file:///x.jpg")], ("", "cat"))
    (tmp_path / "x" / "labels" / LOCK).write_text("{}")
    files = sum(path.is_file() for path in (tmp_path / "x" / "labels").rglob("*"))
    mine = {"x/labels/b.jpg": jpeg(), "x/labels-2/images/c.jpg": jpeg(), "images/d.jpg": jpeg()}
    fill(tmp_path, {**mine, "x/labels/images/e.jpg": jpeg(), "x/_runs/f.txt": b"no run"})
    found = plan_shards(str(tmp_path), output=str(tmp_path / "labels"), is_of_output=OtherOutputs())
    assert found.left_out == {OTHER_OUTPUT: files, NO_IMAGE: 1}
    assert [len(shard.members) for shard in found.shards] == [4]


def test_names_that_are_not_utf8_and_names_that_look_like_their_escapes(tmp_path: Path) -> None:
    names = [b"a\xff.jpg", b"a\\xff.jpg", b"a\\x5cxff.jpg", b"\\xe9\xe9.jpg", b"a\\x41.jpg"]
    for number, name in enumerate(names):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(jpeg(number))
    rows = [row for shard in plan_shards(str(tmp_path)).shards for row in encoded(shard)]
    assert {row["status"] for row in rows} == {"ok"}
    assert len({row["image_id"] for row in rows}) == len({row["encoded"] for row in rows}) == 5
    by_id = {row["image_id"].rsplit("/", 1)[-1]: row["encoded"] for row in rows}
    assert by_id[r"a\xff.jpg"] == jpeg(0) and by_id[r"a\x5cxff.jpg"] == jpeg(1)


class OddEtag(QuietHandler):
    """Sends an image whose ETag is not UTF-8."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(jpeg())))
        self.send_header("ETag", '"\xff"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(jpeg())

    do_HEAD = do_GET


def test_an_etag_that_is_not_utf8(tmp_path: Path) -> None:
    with served(OddEtag) as address:
        (tmp_path / "list.txt").write_text(f"{address}/a.jpg\n")
        found = plan_shards(str(tmp_path / "list.txt"))
        rows = [row for shard in found.shards for row in encoded(shard)]
    assert [row["status"] for row in rows] == ["ok"]


def test_images_whose_package_is_missing_are_left_out_and_labelled_once_it_is_there(
    tmp_path: Path,
) -> None:
    fill(tmp_path, {"a.jpg": jpeg(), "b.heic": b"photo", "C.HEIC": b"photo", "d.jxl": b"image"})
    code = (
        "import sys\nsys.modules |= {'pillow_heif': None, 'pillow_jxl': None}\n"
        "from pipeline.plan.plan import plan_shards\n"
        "found = plan_shards(sys.argv[1])\n"
        "print(sum(len(shard.members) for shard in found.shards), found.left_out)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"1 { ({NO_PACKAGE: 3}) }\n"
    assert len(planned(tmp_path)[0]) == 4  # both packages are here
