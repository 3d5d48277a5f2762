"""Stages as Ray's workers call them: Arrow in, Arrow out.

Apart from dataflow.py, which knows the detector: a worker imports the module of what it runs, and
torch and all that the detector needs take seconds of a CPU in each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain

import pyarrow as pa

from pipeline.plan.shards import read_shards_of_group
from pipeline.schema import (
    PART,
    PART_FILE,
    RECEIPT,
    STAGED_FILE,
    WORK,
    Done,
    Receipt,
    Work,
)
from pipeline.stages.publish import Part, PartFile, PublishTarget, publish_part
from pipeline.stages.read import read_shard
from pipeline.stages.stage import stage
from pipeline.stages.staged import ranges_of_files


def table_of_work(work: Work) -> pa.Table:
    """WORK of one task."""
    done = [[{"start": start, "stop": stop} for start, stop in spans] for spans in work.done]
    columns = [[work.group] * len(work.rows), work.rows, done, work.ended]
    return pa.table(columns, schema=WORK)


def read_work(work: pa.Table, plan: str) -> Iterator[pa.Table]:
    """WORK of one task -> ENCODED, of shards of the plan at this URL."""
    group, rows = work["group"][0].as_py(), work["row"].to_pylist()
    shards = read_shards_of_group(plan, group, rows)
    state = (work[name].to_pylist() for name in ("done", "ended"))
    for shard, spans, ended in zip(shards, *state, strict=True):
        positions = chain.from_iterable(range(span["start"], span["stop"]) for span in spans)
        yield from read_shard(shard, Done(tuple(positions), ended))


def table_of_files(files: Sequence[str]) -> pa.Table:
    """STAGED_FILE of one task."""
    return pa.table([files], schema=STAGED_FILE)


def read_ranges(files: pa.Table, staging: str) -> pa.Table:
    """STAGED_FILE -> RANGES."""
    return ranges_of_files(staging, files["file"].to_pylist())


def stage_block(detected: pa.Table, staging: str) -> pa.Table:
    """DETECTED -> RECEIPT."""
    return pa.Table.from_pylist([asdict(stage(detected, staging))], schema=RECEIPT)


def receipts_of_table(table: pa.Table) -> Iterator[Receipt]:
    """The rows of RECEIPT."""
    for row in table.to_pylist():
        yield Receipt(**{**row, "shards": tuple(row["shards"]), "failed": dict(row["failed"])})


def table_of_part(part: Part) -> pa.Table:
    """PART of one task."""
    return pa.Table.from_pylist([asdict(part)], schema=PART)


def write_parts(parts: pa.Table, target: PublishTarget) -> pa.Table:
    """PART -> PART_FILE, of the files that were written."""
    files: list[PartFile] = []
    for row in parts.to_pylist():
        part = Part(row["number"], tuple(row["shards"]), tuple(row["files"]))
        files += publish_part(part, target)
    return pa.Table.from_pylist([asdict(file) for file in files], schema=PART_FILE)


def part_files_of_table(table: pa.Table) -> Iterator[PartFile]:
    """The rows of PART_FILE."""
    for row in table.to_pylist():
        yield PartFile(**row)
