"""Detections joined with their images and sorted by DuckDB on disk."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from jobs.coco.records import Result
from jobs.output.views import limit_memory
from pipeline.schema import DETECTED, OK
from pipeline.stages.publish import BOXES_PER_FILE, IMAGES_PER_FILE
from pipeline.storage.files import InputError

MEMORY = "512MB"  # memory limit of DuckDB
_ROWS_AT_ONCE = 20_000

_IMAGES = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("file_name", pa.string()),
        pa.field("stem", pa.string()),
        pa.field("image_id", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
)
EARLIER = pa.schema([pa.field("image_id", pa.string()), pa.field("num_detections", pa.int32())])
_ENTRIES = pa.schema(
    [
        pa.field("entry", pa.int64()),  # from 1, in the order of the file
        pa.field("id", pa.string()),
        pa.field("category_id", pa.int32()),
        pa.field("score", pa.float64()),
        *(pa.field(side, pa.float64()) for side in ("x", "y", "w", "h")),
    ]
)
# What an entry's image_id may be of an image, by the column of it: the id by COCO's format. Some
# detectors write a name. All entries of a file mean the same, because an id may look like a name.
BY_ID = "id"
MATCHES = {"id": BY_ID, "file_name": "file_name", "stem": "file_name without folder and extension"}
_UNKNOWN_IMAGE = """
SELECT entry, entries.id, count(*) OVER ()
FROM entries ANTI JOIN images ON entries.id = images.{column} ORDER BY entry LIMIT 1
"""
_IS_AMBIGUOUS = """
SELECT count(*) FROM (
    SELECT {column} FROM images SEMI JOIN entries ON entries.id = images.{column}
    GROUP BY 1 HAVING count(*) > 1
)
"""
# Images without an entry that another import labelled are left out; the rest is numbered anew.
_REPLACED = """
SELECT count(*) FROM earlier WHERE num_detections > 0 AND image_id IN (
    SELECT image_id FROM images SEMI JOIN entries ON entries.id = images.{column})
"""
_COUNTS = "SELECT (SELECT count(*) FROM earlier), (SELECT count(*) FROM images)"
_LEFT = """
CREATE TABLE chosen AS
SELECT row_number() OVER (ORDER BY number) - 1 AS number, * EXCLUDE (number) FROM images
WHERE image_id NOT IN (SELECT image_id FROM earlier)
    OR {column} IN (SELECT id FROM entries);
DROP TABLE images;
ALTER TABLE chosen RENAME TO images;
"""
_BOXES = """
CREATE TABLE boxes AS
SELECT number, entry, category_id AS label_id, score::FLOAT AS score,
    x::FLOAT AS x_min, y::FLOAT AS y_min, (x + w)::FLOAT AS x_max, (y + h)::FLOAT AS y_max,
    least(x, y, width - x - w, height - y - h) < 0 AS beyond, least(w, h) <= 0 AS flat
FROM entries JOIN images ON entries.id = images.{column}
ORDER BY number, score DESC, entry
"""
_BLOCK = """
SELECT image_id, width, height, coalesce(
    list({label_id: label_id, score: score, x_min: x_min, y_min: y_min, x_max: x_max, y_max: y_max}
         ORDER BY score DESC, entry) FILTER (entry IS NOT NULL), []) AS boxes
FROM (SELECT * FROM images WHERE number >= $start AND number < $stop)
LEFT JOIN (SELECT * FROM boxes WHERE number >= $start AND number < $stop) USING (number)
GROUP BY number, image_id, width, height ORDER BY number
"""


class CocoResults:
    """The images of an annotation file, with their boxes from a results file.

    Images without an entry that an earlier import labelled are left out: results may come in
    several files. `left` is their number, and `replaced` that of the images with an entry that had
    boxes. `labels` are names by category id. `images` and `boxes` are numbers of rows. `matched_by`
    says what the entries call their images by, of MATCHES. `entries` is their number. `beyond` is
    the number of boxes that reach beyond their image, and `flat` that of boxes without an area.
    Such boxes are kept as they are, so metrics computed from them stay the same.
    """

    def __init__(
        self,
        images: Iterator[dict[str, Any]],
        results: Iterator[Result],
        labels: Sequence[str],
        scratch: Path,
        names: tuple[str, str],
        earlier: Iterable[pa.RecordBatch] = (),
    ):
        """`images` and `labels` come from the annotation file; the database lies in `scratch`.

        `names` are what errors call the results file and the annotation file.

        `earlier` has the rows (EARLIER) of images that imports of other files labelled.

        InputError, which names the image or the entry, if the two files do not fit together.
        """
        self._database = duckdb.connect(str(scratch / "results.duckdb"))
        self._database.execute("SET enable_progress_bar = false")  # DuckDB draws it on stdout
        limit_memory(self._database, MEMORY, str(scratch))
        self.labels, (self._results_name, self._images_name) = tuple(labels), names
        annotated = self._take_images(images)
        column = self._take_results(results)
        self.matched_by = MATCHES[column]
        self.replaced, self.images = self._leave_out_labelled(earlier, column)
        self.left = annotated - self.images
        self._database.execute(_BOXES.format(column=column))
        self._database.execute("DROP TABLE entries")
        counts = self._database.sql(
            "SELECT count(*), count(*) FILTER (beyond), count(*) FILTER (flat) FROM boxes"
        ).fetchall()
        self.boxes, self.beyond, self.flat = counts[0]

    def __enter__(self) -> "CocoResults":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def _take_images(self, images: Iterator[dict[str, Any]]) -> int:
        """Store the images, and return their number."""
        count = self._store("images", _IMAGES, images)
        for column, word in (("id", "id"), ("image_id", "file_name")):
            again = self._database.execute(
                f"SELECT {column} FROM images GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
            ).fetchone()
            if again:
                raise InputError(f"{self._images_name}: two images have the {word} {again[0]}")
        return count

    def _take_results(self, results: Iterator[Result]) -> str:
        """Store the entries, and return the column of `images` that all of them name."""
        self.entries = self._store("entries", _ENTRIES, _result_rows(results))
        first = self._first_unknown("id")
        if first is None:
            return "id"
        for column in ("file_name", "stem"):
            if self._first_unknown(column) is None and not self._is_ambiguous(column):
                return column
        entry, image_id, count = first
        more = f" (one of {count} such entries)" if count > 1 else ""
        raise InputError(
            f"{self._results_name}: entry {entry}: image_id {image_id} is of no image in "
            f"--annotations{more}: all entries give the id of their image, or all its file_name"
        )

    def _leave_out_labelled(
        self, earlier: Iterable[pa.RecordBatch], column: str
    ) -> tuple[int, int]:
        """Leave out the images without an entry that are in `earlier`.

        Returns how many images with an entry had boxes, and the number of images that stay.
        """
        self._database.register("batch", EARLIER.empty_table())
        self._database.execute("CREATE TABLE earlier AS SELECT * FROM batch")
        for batch in earlier:
            self._database.register("batch", batch)
            self._database.execute("INSERT INTO earlier SELECT * FROM batch")
        self._database.unregister("batch")
        ((known, images),) = self._database.execute(_COUNTS).fetchall()
        if not known:
            return 0, images
        ((replaced,),) = self._database.execute(_REPLACED.format(column=column)).fetchall()
        self._database.execute(_LEFT.format(column=column))
        ((images,),) = self._database.execute("SELECT count(*) FROM images").fetchall()
        return replaced, images

    def _first_unknown(self, column: str) -> tuple[int, str, int] | None:
        """The first entry that names no image: its number, its id, and how many there are."""
        sql = _UNKNOWN_IMAGE.format(column=column)
        found: tuple[int, str, int] | None = self._database.execute(sql).fetchone()
        return found

    def _is_ambiguous(self, column: str) -> bool:
        """Whether an entry names two images."""
        ((count,),) = self._database.execute(_IS_AMBIGUOUS.format(column=column)).fetchall()
        return bool(count)

    def _store(self, table: str, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> int:
        """Create a table of `rows`, and return their number."""
        self._database.register("batch", schema.empty_table())
        self._database.execute(f"CREATE TABLE {table} AS SELECT * FROM batch")
        count = 0
        while batch := list(islice(rows, _ROWS_AT_ONCE)):
            count += len(batch)
            self._database.register("batch", pa.Table.from_pylist(batch, schema=schema))
            self._database.execute(f"INSERT INTO {table} SELECT * FROM batch")
        self._database.unregister("batch")
        return count

    def blocks(self, prefix: str) -> Iterator[tuple[str, pa.Table]]:
        """Yield images and boxes as DETECTED rows: blocks, each a shard whose name has `prefix`."""
        now = datetime.now(UTC)
        for number, (start, stop) in enumerate(self._ranges()):
            found = self._database.sql(_BLOCK, params={"start": start, "stop": stop})
            rows, name = found.to_arrow_table(), f"{prefix}{number:05d}"
            yield name, _detected(rows, name, now)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of neighbouring images that fit into one file.

        A range is the number of its first image, and the number after its last.
        """
        counts = self._database.cursor().execute(
            "SELECT number, count(entry) FROM images LEFT JOIN boxes USING (number) "
            "GROUP BY number ORDER BY number"
        )
        start = boxes = 0
        while rows := counts.fetchmany(_ROWS_AT_ONCE):
            for number, count in rows:
                if number > start and (
                    number - start == IMAGES_PER_FILE or boxes + count > BOXES_PER_FILE
                ):
                    yield start, number
                    start, boxes = number, 0
                boxes += count
        yield start, self.images


def _result_rows(results: Iterator[Result]) -> Iterator[dict[str, Any]]:
    for entry, result in enumerate(results, 1):
        yield {
            "entry": entry,
            "id": result.image_id,
            "category_id": result.category_id,
            "score": result.score,
            **dict(zip(("x", "y", "w", "h"), result.bbox, strict=True)),
        }


def _detected(rows: pa.Table, shard: str, now: datetime) -> pa.Table:
    count = len(rows)
    columns: dict[str, Any] = {
        **{name: rows[name] for name in rows.column_names},
        "uri": rows["image_id"],
        "shard": pa.array([shard] * count),
        "index_in_shard": pa.array(range(count)),
        "shard_size": pa.array([None] * (count - 1) + [count], pa.int64()),
        "status": pa.array([OK] * count),
        "processed_at": pa.array([now] * count, pa.timestamp("us", "UTC")),
    }
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in DETECTED]
    table = pa.table(arrays, names=DETECTED.names)
    return table.cast(DETECTED)
