"""What images carry along stays with its image through all stages, whatever becomes of it."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.carry.columns import with_carried
from pipeline.plan.plan import plan_shards
from pipeline.schema import DETECTED, ENCODED, PREPARED
from pipeline.stages import prepare, read
from pipeline.stages.read import read_shard
from pipeline.stages.stage import stage
from pipeline.stages.staged import read_staged_block
from tests.support.carrying import detected
from tests.support.parquet_files import write
from tests.support.samples import jpeg, preparer, write_tar


def test_what_a_list_says_takes_the_place_of_what_its_archive_has(tmp_path: Path) -> None:
    write_tar(tmp_path / "full.tar", {"1.jpg": jpeg(1), "1.json": b'{"split": "archive"}'})
    write_tar(tmp_path / "empty.tar", {"a.txt": b"no image"})
    (tmp_path / "l.csv").write_text("url,split\nfull.tar,list\nempty.tar,list\n")
    shards = plan_shards(str(tmp_path / "l.csv"), carry="split").shards
    rows = [row for one in shards for table in read_shard(one) for row in table.to_pylist()]
    assert [row["status"] for row in rows] == ["ok", "empty_shard"]
    assert [row["carried"] for row in rows] == [{"split": "list"}] * 2


def test_values_pass_the_reader_and_the_preparer_with_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "BYTES_PER_TABLE", 30_000)  # a pair of images
    monkeypatch.setattr(read, "ROWS_PER_TABLE", 5)
    images = [jpeg(n) if n % 3 else b"no image" for n in range(9)]
    score = [n / 7 if n % 4 else None for n in range(9)]
    long = ["x" * (65_000 if n == 2 else 70_000 if n == 3 else n) for n in range(9)]
    columns = {"image": images, "score": score, "long": long, "tags": [["é"] * n for n in range(9)]}
    write(tmp_path / "p.parquet", pa.table(columns))
    (shard,) = plan_shards(str(tmp_path), carry="score,long,tags").shards
    encoded = list(read_shard(shard))
    assert [len(table) for table in encoded] == [5, 4]
    prepared = [block for table in encoded for block in preparer()(table)]
    assert len(prepared) > len(encoded)
    for tables, schema in ((encoded, ENCODED), (prepared, PREPARED)):
        assert {table.schema for table in tables} == {with_carried(schema, shard.carry)}
    rows = [row for table in prepared for row in table.to_pylist()]
    assert [row["status"] == "ok" for row in rows] == [bool(n % 3) for n in range(9)]
    assert [row["carried"] for row in rows] == [
        {"score": score[n], "long": None if n == 3 else long[n], "tags": ["é"] * n}
        for n in range(9)
    ]
    assert [row["not_carried"] for row in rows] == [int(n == 3) for n in range(9)]
    receipt = stage(detected(pa.concat_tables(encoded)), str(tmp_path / "staging"))
    block = read_staged_block(str(tmp_path / "staging"), receipt.file)
    assert block.schema == with_carried(DETECTED, shard.carry)
    assert block["carried"].to_pylist() == [row["carried"] for row in rows]
    statuses = read_staged_block(str(tmp_path / "staging"), receipt.file, ["shard", "status"])
    assert statuses.column_names == ["shard", "status"]
