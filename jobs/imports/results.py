"""Detections in COCO's format: checked, joined with their images and sorted, by DuckDB on disk."""

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from jobs.output.views import limit_memory
from pipeline.schema import DETECTED, OK
from pipeline.stages.publish import BOXES_PER_FILE, IMAGES_PER_FILE
from pipeline.storage.files import InputError

MEMORY = "512MB"  # of DuckDB
_ROWS_AT_ONCE = 20_000

_IMAGES = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("image_id", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
)
# Ids are compared as text: some tools write 5, others "5".
_ENTRIES = """
CREATE TABLE entries AS
SELECT row_number() OVER () AS entry, image_id AS id, category_id, bbox, score
FROM read_json($file, format = 'array', compression = 'none', columns = {
    image_id: 'VARCHAR', category_id: 'DOUBLE', bbox: 'DOUBLE[]', score: 'DOUBLE'})
"""
# What may be wrong with an entry, in words and in SQL. The last comes where the others are right.
_CHECKS = (
    ("bbox {bbox} is not [x, y, width, height] in pixels", """
        NOT coalesce(len(bbox) = 4 AND abs(bbox[1]) < 1e9 AND abs(bbox[2]) < 1e9
        AND bbox[3] BETWEEN 0 AND 1e9 AND bbox[4] BETWEEN 0 AND 1e9, FALSE)"""),
    ("score {score} is not between 0 and 1", "NOT coalesce(score BETWEEN 0 AND 1, FALSE)"),
    ("category_id {category_id} is of no category in --annotations",
     "NOT coalesce(list_contains($known, category_id), FALSE)"),
    ("image_id {id} is of no image in --annotations",
     "id IS NULL OR id NOT IN (SELECT id FROM images)"),
)  # fmt: skip
_BOXES = """
CREATE TABLE boxes AS
SELECT number, entry, category_id::INTEGER AS label_id, score::FLOAT AS score,
    bbox[1]::FLOAT AS x_min, bbox[2]::FLOAT AS y_min,
    (bbox[1] + bbox[3])::FLOAT AS x_max, (bbox[2] + bbox[4])::FLOAT AS y_max,
    least(bbox[1], bbox[2], width - bbox[1] - bbox[3], height - bbox[2] - bbox[4]) < 0 AS beyond
FROM entries JOIN images USING (id)
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
    """All images of an annotation file with the boxes that a results file has of them.

    `labels` are names by category id; `images` and `boxes` are numbers of rows; `beyond` is how
    many boxes reach beyond their picture. They are left so: figures of them stay what they were.
    """

    def __init__(
        self,
        detections: Path,
        images: Iterator[dict[str, Any]],
        labels: Sequence[str],
        scratch: Path,
    ):
        """`images` and `labels` are those of `annotations`; the database lies in `scratch`.

        InputError, naming the image or the entry, where a file is not what it should be.
        """
        self._database = duckdb.connect(str(scratch / "results.duckdb"))
        self._database.execute("SET enable_progress_bar = false")  # DuckDB draws it on stdout
        limit_memory(self._database, MEMORY, str(scratch))
        self.labels = tuple(labels)
        self.images = self._take_images(images)
        self._take_entries(detections, scratch)
        self._check_entries([float(key) for key, name in enumerate(labels) if name])
        self._database.execute(_BOXES)
        self._database.execute("DROP TABLE entries")
        counts = self._database.sql(
            "SELECT count(*), count(*) FILTER (beyond) FROM boxes"
        ).fetchall()
        self.boxes, self.beyond = counts[0]

    def __enter__(self) -> "CocoResults":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def _take_images(self, images: Iterator[dict[str, Any]]) -> int:
        self._database.register("batch", _IMAGES.empty_table())
        self._database.execute("CREATE TABLE images AS SELECT * FROM batch")
        count = 0
        while rows := list(islice(images, _ROWS_AT_ONCE)):
            count += len(rows)
            self._database.register("batch", pa.Table.from_pylist(rows, schema=_IMAGES))
            self._database.execute("INSERT INTO images SELECT * FROM batch")
        self._database.unregister("batch")
        if not count:
            raise InputError("--annotations: the file has no images")
        for column, word in (("id", "id"), ("image_id", "file_name")):
            again = self._database.execute(
                f"SELECT {column} FROM images GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
            ).fetchone()
            if again:
                raise InputError(f"--annotations: two images have the {word} {again[0]}")
        return count

    def _take_entries(self, detections: Path, scratch: Path) -> None:
        _check_list(detections)
        link = scratch / "detections.json"  # whose name DuckDB takes for no pattern
        os.symlink(detections.resolve(), link)
        try:
            self._database.execute(_ENTRIES, {"file": str(link)})
        except duckdb.InvalidInputException as error:
            reason = str(error).splitlines()[0].replace(f'file "{link}"', str(detections))
            raise InputError(f"DETECTIONS: {reason}") from error

    def _check_entries(self, known: list[float]) -> None:
        for words, wrong in _CHECKS:
            values = {"known": known} if "$known" in wrong else {}
            found = self._database.execute(
                f"SELECT entry, id, category_id, bbox, score, (SELECT count(*) FROM entries "
                f"WHERE {wrong}) FROM entries WHERE {wrong} ORDER BY entry LIMIT 1",
                values,
            ).fetchone()
            if found is None:
                continue
            entry, key, category, bbox, score, count = found
            category = category if category is None else f"{category:g}"
            said = words.format(id=key, category_id=category, bbox=bbox, score=score)
            more = f" (one of {count} such entries)" if count > 1 else ""
            raise InputError(f"DETECTIONS: entry {entry}: {said}{more}")

    def blocks(self, shard: str) -> Iterator[tuple[str, pa.Table]]:
        """The images with their boxes as DETECTED rows, a block a shard named after `shard`."""
        now = datetime.now(UTC)
        for number, (start, stop) in enumerate(self._ranges()):
            found = self._database.sql(_BLOCK, params={"start": start, "stop": stop})
            rows, name = found.to_arrow_table(), f"{shard}#images-{number:05d}"
            yield name, _detected(rows, name, now)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Neighbouring images that fit into one file each time: the first, and the one behind."""
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


def _check_list(detections: Path) -> None:
    """InputError unless the file begins and ends as a JSON list does.

    DuckDB says all else that is wrong, but takes a file that ends behind a comma.
    """
    with detections.open("rb") as file:
        begin = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        end = file.read().rstrip()
    if not begin.startswith(b"["):
        raise InputError(
            "DETECTIONS is no JSON list: give a file of "
            '[{"image_id": ..., "category_id": ..., "bbox": [x, y, w, h], "score": ...}, ...]'
        )
    if not end.endswith(b"]"):
        raise InputError("DETECTIONS ends in the middle of its list: was it copied whole?")
