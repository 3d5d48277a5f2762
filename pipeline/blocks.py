"""Stages as Ray's workers call them: Arrow in, Arrow out.

Apart from dataflow.py, which knows the detector: a worker imports the module of what it runs, and
torch and all that the detector needs take seconds of a CPU in each.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.publish import Part, PartFile, PublishTarget, publish_part
from pipeline.read import read_shard
from pipeline.schema import Done, Receipt, Work
from pipeline.shards import Shards, shards_of_group
from pipeline.stage import Staged, ranges_in, stage


def open_work(shards: Shards, staged: Staged) -> tuple[list[Work], int]:
    """What is left to read, a row group of the plan each, and its bytes; the largest come first."""
    outline = shards.outline
    places = staged.places(outline["shard"])
    found, sizes = (np.append(column, -2)[places] for column in (staged.found, staged.sizes))
    rest = np.flatnonzero((found != sizes) | (places < 0))
    work: dict[int, Work] = {}
    rows = (outline[name].to_numpy()[rest].tolist() for name in ("group", "row"))
    for group, row, place in zip(*rows, places[rest].tolist(), strict=True):
        one = work.setdefault(group, Work(group, [], [], []))
        one.rows.append(row)
        one.done.append(staged.done(place) if place >= 0 else [])
        one.ended.append(place >= 0 and bool(staged.sizes[place] >= 0))
    in_order = sorted(work.values(), key=lambda one: -len(one.rows))
    return in_order, int(outline["size"].to_numpy()[rest].sum())


def work_item(work: Work) -> dict[str, str]:
    """Work as a row."""
    return {"work": json.dumps(dataclasses.asdict(work))}


def read_block(batch: pa.Table, plan: str) -> Iterator[pa.Table]:
    """Rows of `work_item` -> ENCODED, of shards of the plan at this URL."""
    for document in batch["work"].to_pylist():
        work = Work(**json.loads(document))
        shards = shards_of_group(plan, work.group, work.rows)
        for shard, ranges, ended in zip(shards, work.done, work.ended, strict=True):
            positions = tuple(chain.from_iterable(range(*bounds) for bounds in ranges))
            yield from read_shard(shard, Done(positions, ended))


def files_item(files: Sequence[str]) -> dict[str, str]:
    """Names of staged files as a row."""
    return {"files": json.dumps(files)}


def ranges_block(batch: pa.Table, staging: str) -> Iterator[pa.Table]:
    """Rows of `files_item` -> RANGES."""
    for document in batch["files"].to_pylist():
        yield ranges_in(staging, json.loads(document))


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
