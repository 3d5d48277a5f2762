"""prepare: ENCODED -> PREPARED. Images are decoded and resized. A failure costs one row.

A child process decodes the images (decode.py). An image that crashes the decoder, or that never
finishes, costs its own row but not the worker.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from model.resize import ResizeRule
from pipeline.isolation.child import Child, ChildFailed, ChildStuck, Row, read_rows_in_child
from pipeline.schema import OK, PREPARED, TIMED_OUT, WORKER_CRASH, failed_row

DECODE = "pipeline.stages.decode:decode_rows"
MAX_PIXELS = 100_000_000  # the size of a 100-megapixel camera's image; 300 MB as RGB
BYTES_PER_TABLE = 16 << 20  # bytes of pixels in one output table
DECODE_SECONDS = 60.0  # time limit of one image


class Preparer:
    """Decodes tables of encoded images, one output row per row. Failed rows pass through."""

    def __init__(
        self,
        resize: ResizeRule,
        max_pixels: int = MAX_PIXELS,
        seconds: float = DECODE_SECONDS,
    ):
        self.resize, self.max_pixels, self.seconds = resize, max_pixels, seconds
        self.child = Child(preload="pipeline.stages.decode")
        self.child.start()

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Convert an ENCODED table to PREPARED tables, each of about BYTES_PER_TABLE of pixels."""
        rows: list[Row] = []
        size = 0
        inputs = table.to_pylist()
        decoded = self._decode_in_child([row["encoded"] for row in inputs if row["status"] == OK])
        for row in inputs:
            rows.append(_prepared_row(row, next(decoded) if row["status"] == OK else {}))
            size += len(rows[-1]["pixels"] or b"")
            if size >= BYTES_PER_TABLE:
                yield pa.Table.from_pylist(rows, schema=PREPARED)
                rows, size = [], 0
        if rows:
            yield pa.Table.from_pylist(rows, schema=PREPARED)
        # The stream is read to its end, because an unfinished stream kills its child process.
        assert next(decoded, None) is None

    def _decode_in_child(self, images: list[bytes]) -> Iterator[Row]:
        """The rows that `decode_rows` yields in the child, one per image."""

        def instead(_: int, why: ChildFailed) -> Row:
            status = TIMED_OUT if isinstance(why, ChildStuck) else WORKER_CRASH
            return {"status": status, "error": f"while it was decoded: {why}"}

        def arguments(number: int) -> tuple[Any, ...]:
            return images[number:], self.resize, self.max_pixels

        return read_rows_in_child(self.child, DECODE, arguments, self.seconds, instead, go_on=True)


def _prepared_row(row: Row, decoded: Row) -> Row:
    """A PREPARED row, from an ENCODED row and the result of decoding it."""
    row = {**row, "encoded_bytes": len(row["encoded"] or b""), **decoded}
    if row["status"] != OK:
        return failed_row(PREPARED, row, row["status"], row["error"])
    return {name: row.get(name) for name in PREPARED.names}
