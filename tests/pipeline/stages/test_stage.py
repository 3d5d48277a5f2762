"""Staged blocks: none overwrites the work of another task."""

from pathlib import Path

from pipeline.stages.publish import (
    reconcile,
)
from pipeline.stages.stage import stage
from pipeline.stages.staged import read_staging
from tests.support.blocks import block, complete


def test_shards_with_equal_ids_do_not_overwrite_each_other(tmp_path: Path) -> None:
    staging = str(tmp_path / "_staging")
    receipts = [stage(block(shard, [0, 1], size=2), staging) for shard in ("a", "b")]
    assert receipts[0].file != receipts[1].file
    result = read_staging(staging)
    assert complete(result) == {"a", "b"}
    reconcile(["a", "b"], result)


def test_a_task_that_runs_again_overwrites_its_own_block(tmp_path: Path) -> None:
    staging = str(tmp_path / "_staging")
    first, again = (stage(block("a", [0, 1], size=2), staging) for _ in range(2))
    assert first.file == again.file
    assert len(list((tmp_path / "_staging").iterdir())) == 1
