"""Images in archives and of unknown sizes: unique ids, bounded memory, linear time."""

import io
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.formats import parquet
from pipeline.formats.read import read_rows
from pipeline.formats.rows import MAX_ENCODED_BYTES
from pipeline.plan.plan import plan_shards
from pipeline.schema import Shard
from pipeline.stages import read
from tests.support.parameters import others_slow
from tests.support.samples import encoded, jpeg
from tests.support.web import QuietHandler, served

HUGE = 600_000_000  # bytes
SECONDS = 60.0  # for 100,000 members, which take 3 seconds on an idle core


def shard_of(source: Path, **options: Any) -> Shard:
    (shard,) = plan_shards(str(source), **options).shards
    return shard


def ids(source: Path) -> list[str]:
    """The ids of the images of an archive, without its address."""
    found: list[str] = [row["image_id"] for row in read_rows(shard_of(source), 0)]
    return [name.removeprefix(f"file://{source}") for name in found]


def write_equal_names(path: Path, names: list[str]) -> Path:
    """A tar whose members have these names, in this order."""
    with tarfile.open(path, "w") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
    return path


def test_equal_names_in_a_tar_are_numbered(tmp_path: Path) -> None:
    names = ["a.jpg", "a.jpg", "a.jpg", "a.jpg~2.jpg", "a.jpg", "a.png", "a.jpg", "b/a.jpg"]
    found = ids(write_equal_names(tmp_path / "t.tar", names))
    assert found == ["#a", "#a.jpg", "#a.jpg~2", "#a.jpg~2.jpg", "#a.jpg~3", "#a.png", "#a.jpg~4",
                     "#b/a"]  # fmt: skip
    names = ["a.jpg", "a.jpg", "a.jpg~2", "a.jpg~2.jpg", "a.jpg~3.x.jpg", "a.jpg", "a.jpg"]
    found = ids(write_equal_names(tmp_path / "t.tar", names))
    assert len(found) == len(set(found))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jpg", "deep/folder/a.b.c.jpg"])
def test_time_for_equal_names_in_a_tar_is_linear(name: str, tmp_path: Path) -> None:
    source = write_equal_names(tmp_path / "t.tar", [name] * 100_000)
    shard = shard_of(source)
    began = time.process_time()
    assert len({row["image_id"] for row in read_rows(shard, 0)}) == 100_000
    assert time.process_time() - began < SECONDS


@pytest.mark.slow
def test_time_for_equal_ids_in_a_parquet_file_is_linear(tmp_path: Path) -> None:
    table = pa.table({"id": ["x"] * 100_000, "image": [b"x"] * 100_000})
    pq.write_table(table, tmp_path / "p.parquet")
    began = time.process_time()
    found = ids(tmp_path / "p.parquet")
    assert time.process_time() - began < SECONDS
    assert found[:3] == ["x", "#1", "#2"]
    assert len(set(found)) == 100_000


def test_ids_that_look_like_those_of_other_rows_are_numbered(tmp_path: Path) -> None:
    source = tmp_path / "p.parquet"
    given = [f"file://{source}#1", f"file://{source}#1", f"file://{source}#1~2", None, "x" * 5000]
    pq.write_table(pa.table({"id": given, "image": [b"x"] * 5}), source)
    assert ids(source) == ["#1", "#1~2", "#2", "#3", "#4"]
    (tmp_path / "t.tar").write_bytes(member("broken-after-1.jpg") + b"damaged" * 200)
    assert ids(tmp_path / "t.tar") == ["#broken-after-1", "#broken-after-1~2"]


def member(name: str) -> bytes:
    """An image in a tar, without the end of the archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(jpeg())
        archive.addfile(entry, io.BytesIO(jpeg()))
    return file.getvalue()[: 512 + -(-len(jpeg()) // 512) * 512]


def write_rows(path: Path, sizes: list[int], kind: pa.DataType, **options: Any) -> Path:
    """A Parquet file with an image of zeros of each size, in one row group."""
    image = pa.array([jpeg() if size == 0 else bytes(size) for size in sizes], kind)
    table = pa.table({"id": [str(i) for i in range(len(sizes))], "image": image})
    pq.write_table(table, path, use_dictionary=False, **options)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_huge_rows_of_a_parquet_file_cost_a_row_each(kind: pa.DataType, tmp_path: Path) -> None:
    sizes = [0, HUGE, 0, MAX_ENCODED_BYTES, MAX_ENCODED_BYTES + 1, 0]
    rows = encoded(shard_of(write_rows(tmp_path / "p.parquet", sizes, kind)))
    assert [row["status"] for row in rows] == ["ok", "too_large", "ok", "ok", "too_large", "ok"]
    assert rows[1]["error"] == f"{HUGE} bytes are more than {MAX_ENCODED_BYTES}"
    assert [row["image_id"] for row in rows] == list("012345")
    assert peak_of_reader() < 4_096  # MiB: one page (1,060), a copy of the value, what was freed


@pytest.mark.slow
def test_many_huge_rows_of_a_parquet_file_cost_a_row_each(tmp_path: Path) -> None:
    """Together they have more bytes than a reader may hold."""
    source = tmp_path / "p.parquet"
    schema = pa.schema([("image", pa.large_binary())])
    with pq.ParquetWriter(source, schema, use_dictionary=False, compression="zstd") as writer:
        for size in (0, 6):
            rows = [bytes(HUGE)] * size + [jpeg()]
            table = pa.table({"image": pa.chunked_array([[row] for row in rows])}, schema=schema)
            writer.write_table(table, row_group_size=100)
    statuses = [row["status"] for row in encoded(shard_of(source))]
    assert statuses == ["ok", *["too_large"] * 6, "ok"]
    assert peak_of_reader() < 4_096


@pytest.mark.slow
def test_huge_image_of_hugging_face_costs_a_row(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(), "path": "a"}, {"bytes": bytes(HUGE), "path": "b"}, None]
    table = pa.table({"image": images})
    pq.write_table(table, tmp_path / "p.parquet", use_dictionary=False)
    statuses = [row["status"] for row in encoded(shard_of(tmp_path / "p.parquet"))]
    assert statuses == ["ok", "too_large", "missing_bytes"]


def peak_of_reader() -> int:
    """The most memory that the reader's process held, in MiB."""
    process = read._child._process
    assert process is not None
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


@pytest.fixture(autouse=True)
def fresh_reader() -> None:
    read._child.close()


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "kind", others_slow([tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
)
def test_giant_header_of_a_tar_is_damage_and_is_not_read(kind: bytes, tmp_path: Path) -> None:
    with (tmp_path / "t.tar").open("wb") as file:
        file.write(member("a.jpg") + header(kind, 3 << 30))
        file.truncate((3 << 30) + 20_480)
    rows = encoded(shard_of(tmp_path / "t.tar"))
    assert [row["status"] for row in rows] == ["ok", "corrupt_shard"]
    assert f"a header announces {3 << 30} bytes" in rows[-1]["error"]
    assert peak_of_reader() < 512
    assert plan_shards(str(tmp_path / "t.tar"), limit=1).shards  # the driver counts images


@pytest.mark.slow
def test_members_of_a_tar_are_not_kept(tmp_path: Path) -> None:
    """100,000 members took 200 MiB. Each link is a row, and folders are passed over at once."""
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE):
            for number in range(30_000):
                entry = tarfile.TarInfo(f"{number}.jpg")
                entry.type, entry.linkname = kind, "a.jpg"
                archive.addfile(entry)
    began = time.process_time()
    statuses = Counter(row["status"] for row in encoded(shard_of(tmp_path / "t.tar")))
    assert statuses == {"empty_file": 60_001}
    assert time.process_time() - began < SECONDS
    assert peak_of_reader() < 256


def test_many_headers_before_one_member_are_damage(tmp_path: Path) -> None:
    """tarfile calls itself for each of them."""
    content = b"9 path=x\n".ljust(512, b"\0")
    deep = b"".join(header(tarfile.XHDTYPE, 9) + content for _ in range(2000))
    (tmp_path / "t.tar").write_bytes(member("a.jpg") + deep + member("b.jpg") + bytes(1024))
    rows = encoded(shard_of(tmp_path / "t.tar"))
    assert [row["status"] for row in rows] == ["ok", "corrupt_shard"]


def test_sparse_member_of_a_tar_counts_with_the_size_that_it_unfolds_to(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("huge.jpg")
        entry.size = 1
        entry.pax_headers = {
            "GNU.sparse.size": str(8 << 40),
            "GNU.sparse.map": "0,1",
            "GNU.sparse.name": "huge.jpg",
        }
        archive.addfile(entry, io.BytesIO(b"x"))
        entry = tarfile.TarInfo("a.jpg")
        entry.size = len(jpeg())
        archive.addfile(entry, io.BytesIO(jpeg()))
    statuses = [row["status"] for row in encoded(shard_of(tmp_path / "t.tar"))]
    assert statuses == ["too_large", "ok"]


class Endless(QuietHandler):
    """Answers without a length: at /endless with zeros for ever, else with an image."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        try:
            self.wfile.write(jpeg())
            while self.path.startswith("/endless"):
                self.wfile.write(bytes(1 << 20))
        except ConnectionError:
            return


@pytest.fixture
def endless() -> Iterator[str]:
    with served(Endless) as address:
        yield address


def test_web_object_of_unknown_size_is_read_up_to_the_limit(endless: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{endless}/endless.jpg\n{endless}/a.jpg\n")
    rows = encoded(shard_of(tmp_path / "list.txt"))
    assert [row["status"] for row in rows] == ["too_large", "ok"]
    assert rows[1]["encoded"] == jpeg()
    assert peak_of_reader() < 1_536


def test_file_that_grows_after_the_listing_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    shard = shard_of(tmp_path)
    with (tmp_path / "a.jpg").open("ab") as file:
        file.truncate(50 << 30)
    (row,) = encoded(shard)
    assert row["status"] == "changed"
    assert peak_of_reader() < 512


def test_values_above_the_limit_are_never_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small limit, in row groups below and above it."""
    monkeypatch.setattr(parquet, "MAX_ENCODED_BYTES", 1000)
    source = write_rows(tmp_path / "p.parquet", [10, 1000, 1001, 999], pa.binary())
    rows = list(read_rows(shard_of(source), 0))
    assert [row["status"] for row in rows] == ["ok", "ok", "too_large", "ok"]
