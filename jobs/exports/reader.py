"""The source of every export format: a stream of the newest labels, image by image."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import duckdb

from jobs.exports.names import SafeNames
from jobs.output.manifest import Manifest
from jobs.output.views import finished_runs, limit_memory
from pipeline.schema import OK
from pipeline.storage.files import InputError

MEMORY = "256MB"  # memory limit of DuckDB, which sorts larger data on disk
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Choice:
    """Selects the boxes to export. An image without such a box is exported without boxes."""

    min_score: float = 0.0
    labels: tuple[str, ...] = ()  # empty: all labels

    def check(self) -> None:
        """InputError for values that make no sense."""
        if not 0 <= self.min_score <= 1:
            raise InputError(f"--min-score {self.min_score}: give 0 to 1")


class Box(NamedTuple):
    """A box in absolute pixels of the image as displayed, x to the right, y down."""

    label_id: int
    label: str
    score: float
    x_min: float
    y_min: float
    x_max: float
    y_max: float

    def inside(self, width: int, height: int) -> "Box":
        """Return the part within the image; boxes of other models may reach beyond it."""
        x_min, x_max = (min(max(x, 0.0), width) for x in (self.x_min, self.x_max))
        y_min, y_max = (min(max(y, 0.0), height) for y in (self.y_min, self.y_max))
        return self._replace(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image that was labelled, with its selected boxes, best first."""

    number: int  # from 1, in the order of the export
    name: str  # relative path of the image, safe and unique
    file: str  # path of its label file, for formats with one label file for each image
    image_id: str
    shard: str
    model: str
    width: int
    height: int
    boxes: tuple[Box, ...]


# Columns of the table that maps label files to images.
MAPPING = ("file", "picture", "image_id", "shard", "width", "height")


def mapping_row(image: LabelledImage) -> tuple[str | int, ...]:
    """Return the columns of MAPPING after the first."""
    return image.name, image.image_id, image.shard, image.width, image.height


# The query joins `detections`: the view `latest` would search for the newest images a second time.
_ROWS = """
SELECT run, shard, index_in_shard, image_id, model, width, height,
    label_id, label, score, x_min, y_min, x_max, y_max
FROM (SELECT * FROM latest_images WHERE status = $ok)
LEFT JOIN (
    SELECT * FROM detections
    WHERE score >= $min_score::FLOAT AND (len($labels) = 0 OR list_contains($labels, label))
) USING (run, shard, image_id)
ORDER BY run, shard, index_in_shard, image_id, detection
"""
_IMAGE_COLUMNS = 7


class Labels:
    """The selected labels of an OUTPUT. `images` can be called once.

    InputError if `choice` names a label that OUTPUT's model does not know.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, output: str, choice: Choice, scratch: str
    ):
        """`connection` has the views of OUTPUT; `scratch` is DuckDB's folder for sorting on disk.

        `classes` maps the ids of all labels that may come to their names, in order of ids.
        """
        limit_memory(connection, MEMORY, scratch)
        self._connection = connection
        self._choice = choice
        runs = finished_runs(output)
        self._sources = {run["run_id"]: run["input"] for run in runs}
        self.classes = self._select_labels(self._collect_labels(runs))
        failed = connection.execute("SELECT count(*) FROM latest_images WHERE status <> ?", [OK])
        (self.failed,) = failed.fetchall()[0]
        self.written = self.boxes = 0

    def _collect_labels(self, runs: list[Manifest]) -> dict[int, str]:
        """Collect every label of the models that ran, detected or not.

        Label ids therefore stay the same from export to export.
        """
        seen = self._connection.sql("SELECT DISTINCT label_id, label FROM detections").fetchall()
        known = dict(seen)
        for run in runs:
            known.update((k, name) for k, name in enumerate(run["labels"]) if name)
        return dict(sorted(known.items()))

    def _select_labels(self, known: dict[int, str]) -> dict[int, str]:
        wanted = self._choice.labels
        unknown = [label for label in wanted if label not in known.values()]
        if unknown:
            names = ", ".join(dict.fromkeys(known.values())) or "none"
            raise InputError(f"--labels {','.join(unknown)}: the labels are {names}")
        return {k: name for k, name in known.items() if not wanted or name in wanted}

    def images(self, suffix: str = "") -> Iterator[LabelledImage]:
        """Yield every labelled image, by run, shard and position; its `file` ends in `suffix`."""
        with SafeNames(suffix) as names:
            for key, rows in groupby(self._fetch_rows(), key=itemgetter(*range(_IMAGE_COLUMNS))):
                run, shard, _, image_id, model, width, height = key
                found = (row[_IMAGE_COLUMNS:] for row in rows)
                boxes = tuple(Box(*values) for values in found if values[0] is not None)
                self.written += 1
                self.boxes += len(boxes)
                paths = names.name(image_id, shard, self._input_of(run))
                yield LabelledImage(
                    self.written, *paths, image_id, shard, model, width, height, boxes
                )

    def _input_of(self, run: str) -> str:
        """Return INPUT of a run.

        FileNotFoundError if another command has added or removed the run's manifest meanwhile; the
        caller then repeats the query.
        """
        if run not in self._sources:
            raise FileNotFoundError(f"the manifest of {run}")
        return str(self._sources[run])

    def _fetch_rows(self) -> Iterator[tuple[Any, ...]]:
        choice = {"min_score": self._choice.min_score, "labels": list(self._choice.labels)}
        cursor = self._connection.execute(_ROWS, {"ok": OK, **choice})
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            yield from rows
