"""Runs that carry columns along, published without a detector: no image has a box."""

import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.output.run_documents import write_document
from pipeline.carry.columns import carried_part, joined
from pipeline.carry.values import struct_array
from pipeline.formats.read import read_rows
from pipeline.plan.plan import plan_shards
from pipeline.plan.shards import Shards
from pipeline.schema import DETECTED, Shard
from pipeline.stages.publish import group_into_parts, publish_part, reconcile
from pipeline.stages.read import read_shard
from pipeline.stages.stage import stage
from pipeline.stages.staged import read_staging
from pipeline.storage.files import join, open_location, remove_tree
from tests.support.committed import commit_run, make_target


def detected(encoded: pa.Table) -> pa.Table:
    """An ENCODED table as a DETECTED one without boxes."""
    no_boxes = pa.array([[]] * len(encoded), DETECTED.field("boxes").type)
    known = {name: encoded[name] for name in encoded.column_names} | {"boxes": no_boxes}
    columns = [
        known[field.name] if field.name in known else pa.nulls(len(encoded), field.type)
        for field in DETECTED
    ]
    return joined(pa.table(columns, schema=DETECTED), carried_part(encoded))


def carried(shard: Shard) -> list[dict[str, Any]]:
    """What the images of a shard carry along, and the number of values that are not carried.

    Readers run in this process.
    """
    rows = list(read_rows(shard, 0))
    values = struct_array([row.get("carried") for row in rows], shard.carry).to_pylist()
    lost = [{"not_carried": row.get("not_carried", 0)} for row in rows]
    return [one | more for one, more in zip(values, lost, strict=True)]


def carried_from(source: Path, carry: str) -> list[dict[str, Any]]:
    """Plan and read INPUT; return what its images carry along, in the order of shards."""
    shards: Iterator[Shard] = iter(plan_shards(str(source), carry=carry).shards)
    return [row for shard in shards for row in carried(shard)]


def _rows_here(
    _: object, target: str, arguments: Callable[[int], Any], *__: object, **___: object
) -> Iterator[dict[str, Any]]:
    """`read_rows_in_child` in this process."""
    yield from pkgutil.resolve_name(target)(*arguments(0))


def publish_run(
    source: Path | str,
    output: Path | str,
    carry: str | None,
    run_id: str = "20260101T000000Z-aaaaaa",
    planned: Shards | None = None,
) -> int:
    """Label INPUT without a detector; return the number of values that were not carried."""
    output = str(output)
    shards = planned or plan_shards(str(source), carry=carry).shards
    staging = join(output, "_staging", run_id, "blocks")
    target = make_target(output, run_id, ("", "circle"), staging)
    statuses: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.stages.read.read_rows_in_child", _rows_here)
        for shard in shards:
            for table in read_shard(shard):
                stage(detected(table), staging)
                statuses.update(table["status"].to_pylist())
    found = read_staging(staging)
    reconcile(shards.names(), found)
    parts = group_into_parts(shards.names(), found)
    files = [file for part in parts for file in publish_part(part, target)]
    write_document(output, run_id, "run.json", {"run_id": run_id, "options": {}})
    kept = shards.without_carried()
    kept.write_to(join(output, "_runs", run_id, "plan.parquet"))
    commit_run(target, f"file://{source}", files, dict(statuses), carry=shards.carry)
    remove_tree(*open_location(join(output, "_staging", run_id), "staging"))
    return sum(file.not_carried for file in files)
