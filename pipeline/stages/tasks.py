"""The stages as functions that Ray's workers call, from Arrow tables to Arrow tables.

They are not in dataflow.py, which knows the detector. A worker imports the module of the function
that it runs, and importing torch and the detector's other packages takes seconds of a CPU in each
worker.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain

import pyarrow as pa

from pipeline.gpu.reading import GpuReading
from pipeline.plan.shards import read_shards_of_group, shards_of_table
from pipeline.schema import PART, PART_FILE, RECEIPT, STAGED_FILE, WORK, Done, Receipt, Work
from pipeline.stages.publish import Part, PartFile, PublishTarget, publish_part
from pipeline.stages.read import read_shard
from pipeline.stages.stage import receipt_of, stage
from pipeline.stages.staged import ranges_of_files


def table_of_work(work: Work) -> pa.Table:
    """The WORK table of one task."""
    done = [[{"start": start, "stop": stop} for start, stop in spans] for spans in work.done]
    columns = [[work.group] * len(work.rows), work.rows, done, work.ended]
    return pa.table(columns, schema=WORK)


def read_work(work: pa.Table, plan: str) -> Iterator[pa.Table]:
    """Read the shards of one task's WORK table as ENCODED tables. `plan` is the URL of the plan."""
    group, rows = work["group"][0].as_py(), work["row"].to_pylist()
    shards = read_shards_of_group(plan, group, rows)
    state = (work[name].to_pylist() for name in ("done", "ended"))
    for shard, spans, ended in zip(shards, *state, strict=True):
        positions = chain.from_iterable(range(span["start"], span["stop"]) for span in spans)
        yield from read_shard(shard, Done(tuple(positions), ended))


def read_planned_shards(plan: pa.Table) -> Iterator[pa.Table]:
    """Read the shards of a table of schema PLAN as ENCODED tables."""
    for shard in shards_of_table(plan):
        yield from read_shard(shard)


def table_of_files(files: Sequence[str]) -> pa.Table:
    """The STAGED_FILE table of one task."""
    return pa.table([files], schema=STAGED_FILE)


def read_ranges(files: pa.Table, staging: str) -> pa.Table:
    """Convert a STAGED_FILE table to the RANGES table of its files under the URL `staging`."""
    return ranges_of_files(staging, files["file"].to_pylist())


def stage_block(detected: pa.Table, staging: str) -> pa.Table:
    """Stage a DETECTED block under the URL `staging`, and return its RECEIPT table of one row."""
    return pa.Table.from_pylist([asdict(stage(detected, staging))], schema=RECEIPT)


def table_of_receipt(detected: pa.Table) -> pa.Table:
    """The RECEIPT table of a DETECTED block that is not staged. It has one row."""
    return pa.Table.from_pylist([asdict(receipt_of(detected))], schema=RECEIPT)


def receipts_of_table(table: pa.Table) -> Iterator[Receipt]:
    """The rows of a RECEIPT table as objects."""
    for row in table.to_pylist():
        readings = tuple(GpuReading(**reading) for reading in row.pop("gpu"))
        tuples = {name: tuple(row.pop(name)) for name in ("shards", "canaries")}
        yield Receipt(**row | tuples | {"failed": dict(row["failed"]), "gpu": readings})


def table_of_part(part: Part) -> pa.Table:
    """The PART table of one task."""
    return pa.Table.from_pylist([asdict(part)], schema=PART)


def write_parts(parts: pa.Table, target: PublishTarget) -> pa.Table:
    """Write the files of a PART table, and return the PART_FILE table that lists them."""
    files: list[PartFile] = []
    for row in parts.to_pylist():
        part = Part(row["number"], tuple(row["shards"]), tuple(row["files"]))
        files += publish_part(part, target)
    return pa.Table.from_pylist([asdict(file) for file in files], schema=PART_FILE)


def part_files_of_table(table: pa.Table) -> Iterator[PartFile]:
    """The rows of a PART_FILE table as objects."""
    for row in table.to_pylist():
        yield PartFile(**row)
