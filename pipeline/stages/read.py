"""read: Shard -> ENCODED. Every image of a shard becomes one row, including failed images.

A child process opens the files (pipeline/formats/). A parser that crashes or a read that hangs
therefore does not end the worker.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from pipeline.carry.columns import CARRIED, NO_CARRY, NOT_CARRIED, Carry, with_carried
from pipeline.carry.values import struct_array
from pipeline.formats.rows import MAX_ENCODED_BYTES, failed_image
from pipeline.isolation.child import (
    Answers,
    Child,
    ChildFailed,
    ChildStuck,
    Row,
    read_rows_in_child,
)
from pipeline.isolation.frames import table_of_rows
from pipeline.schema import (
    CORRUPT_SHARD,
    EMPTY_SHARD,
    ENCODED,
    NOT_FETCHED,
    NOTHING_DONE,
    OK,
    TIMED_OUT,
    WORKER_CRASH,
    Done,
    Shard,
    fetched_schema,
)
from pipeline.storage.errors import InputError, StorageUnavailable
from pipeline.storage.urls import identity

ROWS_PER_TABLE = 64  # with photos of 200 kB this is about BYTES_PER_TABLE
BYTES_PER_TABLE = 16 << 20
# Time limit of one image. It is longer than the patience of retries.py, because an unavailable
# store must end the run and not fail the image.
READ_SECONDS = 300.0
# Why a reader ends before the end of its shard. The row stands for all images from there on.
READER_FAILURES = frozenset((*NOT_FETCHED, CORRUPT_SHARD, TIMED_OUT, WORKER_CRASH))


def _is_plausible(row: Row) -> bool:
    """Whether a reader can have made this row of some image."""
    if None in (row["image_id"], row["uri"], row["etag"], row["status"]):
        return False
    told = row["status"] == OK or row["error"] is not None
    return told and (row["status"] == OK) == (row["encoded"] is not None)


def reading_child(preload: str, carry: Carry = NO_CARRY) -> Child:
    """A child whose functions yield rows of `fetched_schema`. It has this process's credentials."""
    errors = StorageUnavailable, InputError
    answers = Answers(fetched_schema(carry), MAX_ENCODED_BYTES, errors, _is_plausible)
    return Child(answers, preload, opens_stores=True)


READ_ROWS = "pipeline.formats.read"
_child = reading_child(READ_ROWS)  # the worker's child, reused for all its shards


def _child_for(carry: Carry) -> Child:
    """The worker's child, which answers what a run carries along. A worker serves one run."""
    global _child
    schema = fetched_schema(carry)
    if _child.answers.schema != schema:
        _child.close()
        _child = reading_child(READ_ROWS, carry)
    return _child


def read_shard(shard: Shard, done: Done = NOTHING_DONE) -> Iterator[pa.Table]:
    """Yield the images of a shard as ENCODED tables, without the images in `done`.

    They have what the shard carries along too (carry/columns.py).

    The last image is read again if no staged row marks it as the last.

    Raises StorageUnavailable if the store is unavailable.
    """
    table: list[Row] = []
    size = 0
    positions = frozenset(done.positions)
    for row in _add_said(_number_rows(shard, done), shard):
        if row["index_in_shard"] in positions and (done.ended or row["shard_size"] is None):
            continue
        table.append(row)
        size += len(row["encoded"] or b"")
        if len(table) >= ROWS_PER_TABLE or size >= BYTES_PER_TABLE:
            yield _encoded(table, shard.carry)
            table, size = [], 0
    if table:
        yield _encoded(table, shard.carry)


def _encoded(rows: list[Row], carry: Carry) -> pa.Table:
    """The ENCODED table of some rows of a shard."""
    own = table_of_rows(rows, ENCODED)
    if not carry:
        return own
    values = struct_array([row.get(CARRIED) for row in rows], carry)
    lost = pa.array([row.get(NOT_CARRIED) or 0 for row in rows], pa.int32())
    return pa.table([*own.columns, values, lost], schema=with_carried(ENCODED, carry))


def _number_rows(shard: Shard, done: Done) -> Iterator[Row]:
    """Rows with their position. One row is held back, so that the last row can be marked."""
    previous: Row | None = None
    count = 0
    for row in _time_rows(_read_in_child(shard)):
        if shard.limit is not None and count == shard.limit:
            break
        if previous is not None:
            yield previous
        previous = {**row, "shard": shard.shard, "index_in_shard": count, "shard_size": None}
        count += 1
    if previous is None:
        member = shard.members[0]
        empty = failed_image(member, identity(member.uri), EMPTY_SHARD, "the shard holds no image")
        previous = {**empty, "shard": shard.shard, "index_in_shard": 0}
        count = 1
    before = max(done.positions, default=-1) + 1
    # A failure of the reader stands for all images behind it, and staged ones do not hide it.
    hidden = count == before and not done.ended and previous["status"] in READER_FAILURES
    if count < before or hidden:
        yield previous
        *lost, previous = _rows_of_lost_images(shard, previous, before + (not done.ended))
        yield from lost
        count = previous["index_in_shard"] + 1
    yield {**previous, "shard_size": count}


def _add_said(rows: Iterator[Row], shard: Shard) -> Iterator[Row]:
    """Rows with what a list says of their objects, if it says anything."""
    for row in rows:
        said = shard.members[row["index_in_shard"] if shard.kind == "files" else 0].carried
        yield row if said is None else {**row, CARRIED: said[0], NOT_CARRIED: said[1]}


def _rows_of_lost_images(shard: Shard, last: Row, stop: int) -> Iterator[Row]:
    """Rows for the positions behind `last` that the shard had when it was first read.

    If the reader failed there, they have its reason, so that the next run tries again what can be
    had again. If not, the shard has fewer images than before.
    """
    member = shard.members[0]
    start = last["index_in_shard"] + 1
    status = CORRUPT_SHARD
    reason = f"the shard had more images when it was first read: now {start}"
    if last["status"] in READER_FAILURES:
        status, reason = last["status"], last["error"]
    for index in range(start, stop):
        row = failed_image(member, f"{identity(member.uri)}#lost-{index}", status, reason)
        yield {**row, "shard": shard.shard, "index_in_shard": index, "shard_size": None}


def _read_in_child(shard: Shard) -> Iterator[Row]:
    """Rows of the shard's reader, which runs in the child."""

    asked = shard
    if any(member.carried for member in shard.members):
        # What a list says takes the place of what its archives have: the child need not read that.
        members = tuple(replace(member, carried=None) for member in shard.members)
        asked = replace(shard, members=members, carry=NO_CARRY)

    def instead(number: int, why: ChildFailed) -> Row:
        status = TIMED_OUT if isinstance(why, ChildStuck) else WORKER_CRASH
        if shard.kind == "files":
            member = shard.members[number]
            return failed_image(member, identity(member.uri), status, f"while it was read: {why}")
        member = shard.members[0]
        uri = identity(member.uri)
        name = f"{uri}#broken-after-{number}" if number else uri
        return failed_image(member, name, status, f"while the archive was read: {why}")

    return read_rows_in_child(
        _child_for(shard.carry),
        f"{READ_ROWS}:read_rows",
        lambda number: (asked, number),
        READ_SECONDS,
        instead,
        go_on=shard.kind == "files",
        rows=len(shard.members) if shard.kind == "files" else None,
    )


def _time_rows(rows: Iterator[Row]) -> Iterator[Row]:
    """Rows with the seconds that each took to arrive."""
    began = time.perf_counter()
    for row in rows:
        yield {**row, "read_seconds": time.perf_counter() - began}
        began = time.perf_counter()
