"""stage: DETECTED blocks -> one Parquet file each under `_staging`, and a receipt for the driver.

A staged file is named by the images it holds, so that a task that is run again overwrites its own
work. What is staged is done: a rerun reads `staged()` and leaves those images out.
"""

import hashlib
import io
import time
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import retries
from pipeline.schema import DETECTED, OK, Done, Receipt
from pipeline.storage import find, join, open_location, open_object, write_whole


def block_name(table: pa.Table) -> str:
    """A name that depends on the set of images alone.

    An image is its place in its shard: ids that come from a Parquet column may be those of another
    file as well.
    """
    places = zip(table["shard"].to_pylist(), table["index_in_shard"].to_pylist(), strict=True)
    digest = hashlib.sha256("\0".join(f"{s}\0{i}" for s, i in sorted(places)).encode())
    return f"block-{digest.hexdigest()[:24]}.parquet"


def stage(table: pa.Table, staging: str) -> Receipt:
    """Write one block under the URL `staging`, whole or not at all."""
    began, before = time.perf_counter(), retries.repeated
    table = table.select(DETECTED.names).cast(DETECTED)
    name = block_name(table)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    fs, path = open_location(join(staging, name), "staging")
    write_whole(fs, path, buffer.getvalue())
    statuses = Counter(table["status"].to_pylist())
    images = statuses.total()
    statuses.pop(OK, None)
    return Receipt(
        file=name,
        shards=tuple(sorted(set(table["shard"].to_pylist()))),
        images=images,
        detections=sum(pc.list_value_length(table["boxes"]).to_pylist()),
        failed=dict(statuses),
        encoded_bytes=pc.sum(table["encoded_bytes"]).as_py() or 0,
        read_seconds=pc.sum(table["read_seconds"]).as_py() or 0.0,
        prepare_seconds=pc.sum(table["prepare_seconds"]).as_py() or 0.0,
        detect_seconds=pc.sum(table["detect_seconds"]).as_py() or 0.0,
        retries=(pc.sum(table["retries"]).as_py() or 0) + retries.repeated - before,
        batch_limit=pc.min(table["batch_limit"]).as_py(),
        stage_seconds=time.perf_counter() - began,
        finished_at=time.time(),
    )


@dataclass(frozen=True)
class Staged:
    """What is under a staging folder: one row per image, and the files that hold each shard."""

    images: pa.Table  # shard, index_in_shard, shard_size, status, error: repeats dropped
    files: dict[str, list[str]]  # shard -> names of staged files

    def done(self, shard: str) -> Done:
        """What of the shard is staged."""
        rows = self.images.filter(pc.equal(self.images["shard"], shard))
        ended = len(rows) > rows["shard_size"].null_count
        return Done(tuple(sorted(rows["index_in_shard"].to_pylist())), ended)

    def sizes(self) -> dict[str, tuple[int, int | None]]:
        """Shard -> (images staged, images it has in all; None where its end was not reached)."""
        grouped = self.images.group_by("shard").aggregate(
            [("index_in_shard", "count"), ("shard_size", "max")]
        )
        return {
            row["shard"]: (row["index_in_shard_count"], row["shard_size_max"])
            for row in grouped.to_pylist()
        }

    def complete(self) -> set[str]:
        """Shards of which every image is staged."""
        return {shard for shard, (found, size) in self.sizes().items() if found == size}


_COLUMNS = ["shard", "index_in_shard", "shard_size", "status", "error"]


def staged(staging: str) -> Staged:
    """Read back what blocks under the URL `staging` hold; nothing where the folder is absent."""
    fs, path = open_location(staging, "staging")
    names = [name for name in find(fs, path) if name.rsplit("/", 1)[-1].startswith("block-")]
    tables = []
    files: dict[str, list[str]] = {}
    for name in names:
        with open_object(fs, name) as file:
            table = pq.read_table(file, columns=_COLUMNS)
        for shard in table["shard"].unique().to_pylist():
            files.setdefault(shard, []).append(name.rsplit("/", 1)[-1])
        tables.append(table)
    empty = pa.schema([DETECTED.field(name) for name in _COLUMNS]).empty_table()
    merged = pa.concat_tables([empty, *tables])
    keys = ["shard", "index_in_shard"]
    unique = merged.group_by(keys, use_threads=False).aggregate(
        [("shard_size", "max"), ("status", "first"), ("error", "first")]
    )
    unique = unique.rename_columns([*keys, "shard_size", "status", "error"])
    return Staged(unique, files)
