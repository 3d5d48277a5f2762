"""A staged block never overwrites the block of another task."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schema import DETECTED
from pipeline.stages.publish import reconcile
from pipeline.stages.stage import stage
from pipeline.stages.staged import read_staging
from tests.support.blocks import block, complete_shards


def test_shards_with_equal_ids_do_not_overwrite_each_other(tmp_path: Path) -> None:
    staging = str(tmp_path / "_staging")
    receipts = [stage(block(shard, [0, 1], size=2), staging) for shard in ("a", "b")]
    assert receipts[0].file != receipts[1].file
    result = read_staging(staging)
    assert complete_shards(result) == {"a", "b"}
    reconcile(["a", "b"], result)


def test_a_task_that_runs_again_overwrites_its_own_block(tmp_path: Path) -> None:
    staging = str(tmp_path / "_staging")
    first, again = (stage(block("a", [0, 1], size=2), staging) for _ in range(2))
    assert first.file == again.file
    assert len(list((tmp_path / "_staging").iterdir())) == 1


def test_errors_are_staged_without_secrets(tmp_path: Path) -> None:
    rows = block("a", [0, 1], size=2).to_pylist()
    rows[1].update(status="detector_error", error="RuntimeError: https://u:p@h/a.pth?sig=abc")
    receipt = stage(pa.Table.from_pylist(rows, schema=DETECTED), str(tmp_path))
    errors = pq.read_table(tmp_path / receipt.file)["error"].to_pylist()
    assert errors == [None, "RuntimeError: https://h/a.pth"]


def test_errors_are_not_longer_than_a_person_reads(tmp_path: Path) -> None:
    (row,) = block("a", [0], size=1).to_pylist()
    row.update(status="detector_error", error="x" * 10_000_000)
    receipt = stage(pa.Table.from_pylist([row], schema=DETECTED), str(tmp_path))
    (error,) = pq.read_table(tmp_path / receipt.file)["error"].to_pylist()
    assert error == "x" * 2000
