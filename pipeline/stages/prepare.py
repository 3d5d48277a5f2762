"""prepare: ENCODED -> PREPARED. Images are decoded and resized. A failure costs one row.

A confined child process decodes the images (decode.py). An image that crashes the decoder, or that
never finishes, costs its own row but not the worker. What the child answers is checked here.
"""

import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from model.resize import ResizeRule
from pipeline.carry.columns import carried_part, joined, own_part
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
    DECODED,
    OK,
    PREPARED,
    TIMED_OUT,
    TOO_MANY_PIXELS,
    TRUNCATED,
    UNDECODABLE,
    WORKER_CRASH,
    failed_row,
)
from pipeline.stages.tiling import (
    MAX_PIXELS,
    MAX_TILED_PIXELS,
    MOST_BYTES,
    Tiling,
    views,
    why_too_many,
)
from pipeline.storage.environment import number_of_variable

log = logging.getLogger(__name__)

DECODE = "pipeline.stages.decode:decode_rows"
LOAD, LOAD_BANDS = (
    f"pipeline.stages.decode:{name}" for name in ("load_decoders", "load_decoders_of_bands")
)
BYTES_PER_TABLE = 16 << 20  # bytes of pixels in one output table
# Largest width x height that is decoded, without tiles.
MOST_PIXELS = int(number_of_variable("DETR_BATCH_MAX_PIXELS", 100000000))
DECODE_SECONDS = 60.0  # time limit of one image


class Preparer:
    """Decodes tables of encoded images, one output row per row. Failed rows pass through."""

    def __init__(
        self,
        resize: ResizeRule,
        max_pixels: int = MOST_PIXELS,
        seconds: float = DECODE_SECONDS,
        enlarge: bool = True,
        tiling: Tiling | None = None,
        leave_jpegs: bool = False,
    ):
        """`enlarge` says whether images become larger here, see `ResizeRule.prepared_size`.

        With `tiling` the rows have all views of their images (tiling.py), which may have more than
        `max_pixels`; they may take so much longer than `seconds` as they may be larger. With
        `leave_jpegs` the rows of JPEGs that a detector can decode have their bytes, not pixels.
        """
        self.resize, self.max_pixels, self.seconds = resize, max_pixels, seconds
        self.enlarge, self.tiling, self.leave_jpegs = enlarge, tiling, leave_jpegs
        if tiling is not None:
            self.seconds *= MAX_TILED_PIXELS / MAX_PIXELS
        self.child = Child(self._answers(), preload=LOAD if tiling is None else LOAD_BANDS)
        self.child.start()
        self._sandbox_was_reported = False

    def _answers(self) -> Answers:
        most_bytes = 3 * self.resize.most_pixels(self.max_pixels)
        if self.tiling is not None:
            most_bytes = max(most_bytes, MOST_BYTES)
        return Answers(DECODED, most_bytes, is_plausible=self._is_plausible)

    def _is_plausible(self, decoded: Row) -> bool:
        """Whether the decoder can have made this row of some image."""
        size = decoded["height"], decoded["width"]
        known = None not in size and min(size) > 0
        if decoded["status"] != OK:
            reasons = (UNDECODABLE, TRUNCATED, TOO_MANY_PIXELS)
            told = decoded["status"] in reasons and decoded["error"] is not None
            return told and decoded["pixels"] is None and (known or size == (None, None))
        if not known or self._is_too_large(*size):
            return False
        whole, *tiles = views(*size, self.resize, self.enlarge, self.tiling)
        if decoded["pixels"] is None:
            is_left = self.leave_jpegs and not tiles and decoded["error"] is None
            has_size = decoded["rows"] is not None or decoded["columns"] is not None
            return is_left and not has_size and decoded["orientation"] in range(1, 9)
        return (
            (decoded["rows"], decoded["columns"]) == (whole.rows, whole.columns)
            and len(decoded["pixels"]) == sum(view.bytes for view in (whole, *tiles))
            and decoded["orientation"] in range(1, 9)
        )

    def _is_too_large(self, height: int, width: int) -> bool:
        if self.tiling is None:
            return height * width > self.max_pixels
        return why_too_many(height, width, self.resize, self.enlarge, self.tiling) is not None

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Convert an ENCODED table to PREPARED tables, each of about BYTES_PER_TABLE of pixels."""
        rows: list[Row] = []
        size = first = 0
        inputs, carried = own_part(table).to_pylist(), carried_part(table)
        decoded = self._decode_in_child([row["encoded"] for row in inputs if row["status"] == OK])
        for row in inputs:
            rows.append(_prepared_row(row, next(decoded) if row["status"] == OK else {}))
            size += len(rows[-1]["pixels"] or rows[-1]["encoded"] or b"")
            if size >= BYTES_PER_TABLE:
                part = carried.slice(first, len(rows))
                yield joined(table_of_rows(rows, PREPARED), part)
                first += len(rows)
                rows, size = [], 0
        if rows:
            yield joined(table_of_rows(rows, PREPARED), carried.slice(first))
        # The stream is read to its end, because an unfinished stream kills its child process.
        assert next(decoded, None) is None
        self._report_missing_sandbox()

    def _report_missing_sandbox(self) -> None:
        """Log once that the machine cannot limit what the decoder does."""
        if self.child.unlimited_because and not self._sandbox_was_reported:
            log.warning("images are decoded without a sandbox: %s", self.child.unlimited_because)
            self._sandbox_was_reported = True

    def _decode_in_child(self, images: list[bytes]) -> Iterator[Row]:
        """The rows that `decode_rows` yields in the child, one per image."""

        def instead(_: int, why: ChildFailed) -> Row:
            status = TIMED_OUT if isinstance(why, ChildStuck) else WORKER_CRASH
            return {"status": status, "error": f"while it was decoded: {why}"}

        def arguments(number: int) -> tuple[Any, ...]:
            rest, how = images[number:], (self.enlarge, self.tiling, self.leave_jpegs)
            return rest, self.resize, self.max_pixels, *how

        return read_rows_in_child(
            self.child, DECODE, arguments, self.seconds, instead, go_on=True, rows=len(images)
        )


def _prepared_row(row: Row, decoded: Row) -> Row:
    """A PREPARED row, from an ENCODED row and the result of decoding it."""
    row = {**row, "encoded_bytes": len(row["encoded"] or b""), **decoded}
    if row["status"] != OK or decoded.get("pixels") is not None:
        row["encoded"] = None
    if row["status"] != OK:
        return failed_row(PREPARED, row, row["status"], row["error"])
    return {name: row.get(name) for name in PREPARED.names}
