"""Every file and every member of an archive becomes exactly one row, whatever is in it."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.plan.listing import NO_IMAGE_COLUMN
from pipeline.plan.plan import plan_shards
from pipeline.schema import Done
from tests.support.samples import encoded, jpeg, prepared, write_tar
from tests.support.web import FileHandler, served_files


def test_every_nasty_file_ends_as_one_row(testdata: Path) -> None:
    rows = prepared(testdata / "nasty", format="images")
    files = [p for p in (testdata / "nasty").rglob("*") if p.is_file()]
    names = [p for p in files if p.name[0] not in "_." and p.suffix not in (".tar", ".parquet")]
    assert Counter(row["image_id"] for row in rows) == Counter(f"file://{p}" for p in names)
    for row in rows:
        assert (row["status"] == "ok") == (row["pixels"] is not None) == (row["error"] is None)


def test_shards_that_other_tools_wrote_are_read(testdata: Path) -> None:
    rows = prepared(testdata / "shards")
    ids = Counter(row["image_id"] for row in rows)
    assert max(ids.values()) == 1
    assert "corrupt_shard" not in {row["status"] for row in rows}
    left_out = plan_shards(str(testdata / "shards")).left_out
    assert left_out[NO_IMAGE_COLUMN] == 1  # a table of integers, whose checksums are wrong


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_truncated_tar_keeps_what_came_before(tmp_path: Path, mode: str) -> None:
    members = {f"{i:03}.jpg": jpeg(i) for i in range(6)}
    whole = write_tar(tmp_path / "whole.tar", members, mode).read_bytes()
    for cut in range(700, len(whole) - 11_000 if mode == "w" else len(whole) - 20, 1777):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        (shard,) = plan_shards(str(tmp_path / "cut.tar")).shards
        rows = encoded(shard)
        good = [row for row in rows if row["status"] == "ok"]
        assert [row["encoded"] for row in good] == list(members.values())[: len(good)]
        assert rows[-1]["shard_size"] == len(rows)
        if len(good) < len(members):
            assert rows[-1]["status"] == "corrupt_shard"


def test_ids_are_unique_within_a_tar(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/1.png", "b/1.jpg", "b/1.seg.jpg", "./b/1.jpg", "note.txt"]
    source = write_tar(tmp_path / "t.tar", {name: jpeg() for name in names})
    (shard,) = plan_shards(str(source)).shards
    ids = [row["image_id"].split("#")[1] for row in encoded(shard)]
    assert ids == ["a/1", "a/1.png", "b/1", "b/1.seg.jpg", "./b/1.jpg"]


def test_leaving_out_what_is_done_keeps_positions(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "t.tar", {f"{i}.jpg": jpeg(i) for i in range(7)})
    (shard,) = plan_shards(str(source)).shards
    everything = [without_seconds(row) for row in encoded(shard)]
    for done in (Done((0, 3)), Done((6,), ended=True), Done(tuple(range(7)), ended=True)):
        rest = [without_seconds(row) for row in encoded(shard, done)]
        assert rest == [row for row in everything if row["index_in_shard"] not in done.positions]
    # Image 6 was staged before it was known to be the last, so it is read again to learn that.
    assert [row["index_in_shard"] for row in encoded(shard, Done((0, 6)))] == [1, 2, 3, 4, 5, 6]


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "read_seconds"}


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("left", [0, 2])
def test_positions_of_a_shard_that_lost_images_since_a_kill_stay_whole(
    left: int, ended: bool, tmp_path: Path
) -> None:
    source = write_tar(tmp_path / "t.tar", {f"{i}.jpg": jpeg(i) for i in range(7)})
    (shard,) = plan_shards(str(source)).shards
    done = Done((0, 4, 6), ended)
    write_tar(source, {f"{i}.jpg": jpeg(i) for i in range(left)})
    if not left:
        source.unlink()
    rows = encoded(shard, done)
    positions = {row["index_in_shard"] for row in rows} | set(done.positions)
    sizes = {row["shard_size"] for row in rows} - {None} | ({7} if ended else set())
    assert positions == set(range(len(positions)))
    assert sizes == {len(positions)}
    assert len({row["image_id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("positions", [(0,), (0, 1, 2), (2, 3)])
def test_staged_images_do_not_hide_that_a_shard_cannot_be_had_any_more(
    positions: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    """The images behind them have the reader's reason, so that they are tried again."""
    images = {f"{i}.jpg": jpeg(i) for i in range(7)}
    source = tmp_path / f"a.{kind}"
    if kind == "tar":
        write_tar(source, images)
    else:
        pq.write_table(pa.table({"image": list(images.values())}), source)
    (shard,) = plan_shards(str(source)).shards
    source.unlink()
    (failed,) = encoded(shard)
    assert failed["status"] != "corrupt_shard"
    rows = encoded(shard, Done(positions))
    assert {(row["status"], row["error"]) for row in rows} == {(failed["status"], failed["error"])}
    found = sorted([*positions, *(row["index_in_shard"] for row in rows)])
    assert found == list(range(max(positions) + 2))
    assert rows[-1]["shard_size"] == len(found)


def test_names_with_wildcards_and_with_invalid_utf8_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "Photos [2019] *"
    folder.mkdir()
    for name in ("a[1].jpg", "b?.jpg", "c*.jpg", "a1.jpg"):
        (folder / name).write_bytes(jpeg())
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg())
    write_tar(tmp_path / "t.tar", {os.fsdecode(b"na\xefve.jpg"): jpeg()})
    rows = prepared(tmp_path)
    found = {Path(row["image_id"]).name: row["status"] for row in rows}
    assert found == {
        "a[1].jpg": "ok",
        "b?.jpg": "ok",
        "c*.jpg": "ok",
        "a1.jpg": "ok",
        "caf\\xe9.jpg": "ok",
        "t.tar#na\\xefve": "ok",
    }


def test_parquet_columns_of_plain_and_nested_bytes_are_read(tmp_path: Path) -> None:
    nested = [{"bytes": jpeg(), "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None]
    pq.write_table(pa.table({"image": nested, "label": [1, 2, 3]}), tmp_path / "hf.parquet")
    rows = prepared(tmp_path)
    assert [row["status"] for row in rows] == ["ok", "missing_bytes", "missing_bytes"]
    assert rows[0]["image_id"] == f"file://{tmp_path}/hf.parquet#0"
    pq.write_table(pa.table({"id": ["x", "x"], "jpg": [jpeg(), b""]}), tmp_path / "hf.parquet")
    rows = prepared(tmp_path)
    assert [row["image_id"] for row in rows] == ["x", f"file://{tmp_path}/hf.parquet#1"]
    assert [row["status"] for row in rows] == ["ok", "empty_file"]


@pytest.mark.parametrize("sends_length", [True, False])
def test_archives_are_read_from_a_plain_web_server(sends_length: bool, tmp_path: Path) -> None:
    """The server sends whole files only, maybe without a length, larger than the read-ahead."""

    class Plain(FileHandler):
        def send_header(self, name: str, value: str) -> None:
            if sends_length or name != "Content-Length":
                super().send_header(name, value)

    large = jpeg() + os.urandom(6 << 20)
    write_tar(tmp_path / "t.tar", {"a.jpg": large, "b.jpg": jpeg(1)})
    pq.write_table(pa.table({"image": [large, jpeg(1)]}), tmp_path / "p.parquet")
    listed = tmp_path / "list.txt"
    with served_files(tmp_path, Plain) as base:
        listed.write_text(f"{base}/t.tar\n{base}/p.parquet")
        rows = [row for shard in plan_shards(str(listed)).shards for row in encoded(shard)]
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert [row["encoded"] for row in rows] == [large, jpeg(1)] * 2
