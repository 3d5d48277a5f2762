"""stage: write each DETECTED block as a Parquet file under `_staging`, and send a receipt.

The name of a staged file depends on the images it holds, so that a task that runs again overwrites
its own file. Staged images are finished: a rerun reads the files (staged.py) and skips them.
"""

import hashlib
import io
import time
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.carry.columns import carry_of_rows, with_carried
from pipeline.gpu.reading import GpuReading
from pipeline.schema import DETECTED, OK, Receipt
from pipeline.storage import retries
from pipeline.storage.files import join, open_location, write_whole
from pipeline.storage.parquet import write_parquet
from pipeline.storage.urls import mask

LONGEST_ERROR = 2000  # characters; a detector of a user may raise any text


def block_name(table: pa.Table) -> str:
    """A file name that depends only on the set of images.

    Images are identified by their shard and position. Ids from a Parquet column may also occur in
    another file.
    """
    positions = zip(table["shard"].to_pylist(), table["index_in_shard"].to_pylist(), strict=True)
    digest = hashlib.sha256("\0".join(f"{s}\0{i}" for s, i in sorted(positions)).encode())
    return f"block-{digest.hexdigest()[:24]}.parquet"


def stage(table: pa.Table, staging: str) -> Receipt:
    """Write one block under the URL `staging`, whole or not at all, and return its receipt.

    All rows of a run pass here. Their errors are written without secrets.
    """
    began, before = time.perf_counter(), retries.repeated
    schema = with_carried(DETECTED, carry_of_rows(table.schema))
    table = _mask_errors(table.select(schema.names).cast(schema))
    name = block_name(table)
    buffer = io.BytesIO()
    write_parquet(buffer, schema, [table])
    fs, path = open_location(join(staging, name), "staging")
    write_whole(fs, path, buffer.getvalue())
    receipt = receipt_of(table, name)
    repeated = receipt.retries + retries.repeated - before
    return replace(receipt, retries=repeated, stage_seconds=time.perf_counter() - began)


def receipt_of(table: pa.Table, name: str = "") -> Receipt:
    """The receipt of a DETECTED block, whether it is written as the file `name` or not."""
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
        retries=pc.sum(table["retries"]).as_py() or 0,
        computation=pc.max(table["computation"]).as_py(),
        canaries=tuple(table["canaries"].drop_null().to_pylist()),
        gpu=tuple(GpuReading(**one) for one in table["gpu"].drop_null().to_pylist()),
        refused=pc.sum(table["is_refused"]).as_py() or 0,
        finished_at=time.time(),
    )


def _masked(error: str) -> str:
    """An error without secrets, and not longer than a person reads."""
    return mask(error[: 2 * LONGEST_ERROR])[:LONGEST_ERROR]  # a secret is not cut in two


def _mask_errors(table: pa.Table) -> pa.Table:
    """The table with errors that contain no secrets."""
    position = DETECTED.get_field_index("error")
    if table["error"].null_count == len(table):
        return table
    errors = [error and _masked(error) for error in table["error"].to_pylist()]
    return table.set_column(position, DETECTED.field(position), pa.array(errors, pa.string()))
