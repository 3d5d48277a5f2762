"""prepare: ENCODED -> PREPARED. Pictures are decoded and resized; a failure costs one row.

That is done in a child process (decode.py): a picture that crashes its decoder, or keeps it busy
for ever, costs its own row and no worker.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from model.resize import ResizeRule
from pipeline.isolation.child import Child, ChildFailed, ChildStuck, Row, read_rows_in_child
from pipeline.schema import OK, PREPARED, TIMED_OUT, WORKER_CRASH, failed_row

DECODE = "pipeline.stages.decode:decode_rows"
MAX_PIXELS = 100_000_000  # a 100-megapixel camera's; 300 MB as RGB
BYTES_PER_TABLE = 16 << 20  # of pixels
DECODE_SECONDS = 60.0  # for one image


class Preparer:
    """Decodes tables of encoded pictures, row for row; failed rows pass through."""

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
        """PREPARED tables of at most about BYTES_PER_TABLE of pixels each."""
        rows: list[Row] = []
        size = 0
        given = table.to_pylist()
        decoded = self._decode_in_child([row["encoded"] for row in given if row["status"] == OK])
        for row in given:
            rows.append(_prepared_row(row, next(decoded) if row["status"] == OK else {}))
            size += len(rows[-1]["pixels"] or b"")
            if size >= BYTES_PER_TABLE:
                yield pa.Table.from_pylist(rows, schema=PREPARED)
                rows, size = [], 0
        if rows:
            yield pa.Table.from_pylist(rows, schema=PREPARED)
        assert next(decoded, None) is None  # a stream that is left unfinished ends its process

    def _decode_in_child(self, images: list[bytes]) -> Iterator[Row]:
        """What `decode_rows` says of each."""

        def instead(_: int, why: ChildFailed) -> Row:
            status = TIMED_OUT if isinstance(why, ChildStuck) else WORKER_CRASH
            return {"status": status, "error": f"while it was decoded: {why}"}

        def arguments(number: int) -> tuple[Any, ...]:
            return images[number:], self.resize, self.max_pixels

        return read_rows_in_child(self.child, DECODE, arguments, self.seconds, instead, go_on=True)


def _prepared_row(row: Row, decoded: Row) -> Row:
    """One ENCODED row and what came of decoding it -> one PREPARED row."""
    row = {**row, "encoded_bytes": len(row["encoded"] or b""), **decoded}
    if row["status"] != OK:
        return failed_row(PREPARED, row, row["status"], row["error"])
    return {name: row.get(name) for name in PREPARED.names}
