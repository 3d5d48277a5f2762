"""Stages as Ray's workers call them: Arrow in, Arrow out.

Apart from dataflow.py, which knows the detector: a worker imports the module of what it runs, and
torch and all that the detector needs take seconds of a CPU in each.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.plan import from_table, to_table
from pipeline.publish import Part, PartFile, PublishTarget, publish_part
from pipeline.read import read_shard
from pipeline.schema import Done, Receipt, Shard
from pipeline.stage import stage


def shard_block(shard: Shard, done: Done) -> pa.Table:
    """A shard and what is finished of it as a block of one row."""
    positions = pa.array([done.positions], pa.list_(pa.int64()))
    work = to_table([shard]).append_column("done", positions)
    return work.append_column("ended", pa.array([done.ended]))


def read_block(batch: pa.Table) -> Iterator[pa.Table]:
    """Blocks of `shard_block` -> ENCODED."""
    done = batch.select(["done", "ended"]).to_pylist()
    shards = from_table(batch.drop_columns(["done", "ended"]))
    for shard, finished in zip(shards, done, strict=True):
        yield from read_shard(shard, Done(tuple(finished["done"]), finished["ended"]))


def stage_block(table: pa.Table, staging: str) -> pa.Table:
    """DETECTED -> one receipt, see `receipts`."""
    receipt = json.dumps(dataclasses.asdict(stage(table, staging)))
    return pa.table({"receipt": [receipt]})


def receipts(batch: pa.Table) -> Iterator[Receipt]:
    """What `stage_block` says."""
    for document in batch["receipt"].to_pylist():
        fields = json.loads(document)
        yield Receipt(**{**fields, "shards": tuple(fields["shards"])})


def part_item(part: Part) -> dict[str, str]:
    """A part as a row."""
    return {"part": json.dumps(dataclasses.asdict(part))}


def publish_block(batch: pa.Table, target: PublishTarget) -> pa.Table:
    """Rows of `part_item` -> the files that were written, see `part_files`."""
    files: list[str] = []
    for document in batch["part"].to_pylist():
        fields: dict[str, Any] = json.loads(document)
        part = Part(fields["number"], tuple(fields["shards"]), tuple(fields["files"]))
        files += [json.dumps(dataclasses.asdict(f)) for f in publish_part(part, target)]
    return pa.table({"file": files})


def part_files(batch: pa.Table) -> Iterator[PartFile]:
    """What `publish_block` says."""
    for document in batch["file"].to_pylist():
        yield PartFile(**json.loads(document))
