"""What every format of `export` is written from: the newest labels, image by image, as a stream."""

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

MEMORY = "256MB"  # of DuckDB, which sorts on disk what does not fit
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Choice:
    """Which boxes are wanted. Images without one of them stay, with none."""

    min_score: float = 0.0
    labels: tuple[str, ...] = ()  # empty: all

    def check(self) -> None:
        """InputError for values that cannot be meant."""
        if not 0 <= self.min_score <= 1:
            raise InputError(f"--min-score {self.min_score}: give 0 to 1")


class Box(NamedTuple):
    """Absolute pixels of the image as displayed, x to the right, y down."""

    label_id: int
    label: str
    score: float
    x_min: float
    y_min: float
    x_max: float
    y_max: float

    def inside(self, width: int, height: int) -> "Box":
        """The part of it within a picture; those of other models may reach beyond."""
        x_min, x_max = (min(max(x, 0.0), width) for x in (self.x_min, self.x_max))
        y_min, y_max = (min(max(y, 0.0), height) for y in (self.y_min, self.y_max))
        return self._replace(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image that was labelled, with its chosen boxes, best first."""

    number: int  # from 1, in the order of the export
    name: str  # of the picture: a relative path, safe and unique
    file: str  # of its labels, where each picture has such a file
    image_id: str
    shard: str
    model: str
    width: int
    height: int
    boxes: tuple[Box, ...]


# What a table says of each file of labels.
MAPPING = ("file", "picture", "image_id", "shard", "width", "height")


def mapped(image: LabelledImage) -> tuple[str | int, ...]:
    """The columns of MAPPING behind the first."""
    return image.name, image.image_id, image.shard, image.width, image.height


# `detections` is joined, not `latest`, which would look for the newest images a second time.
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
    """The chosen labels of an OUTPUT. `images` may be asked for once.

    InputError where `choice` names a label that OUTPUT's model does not know.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, output: str, choice: Choice, scratch: str
    ):
        """`connection` has the views of OUTPUT; `scratch` is a folder for what is sorted on disk.

        `classes` maps the ids of all labels that may come to their names, in order of ids.
        """
        limit_memory(connection, MEMORY, scratch)
        self._connection = connection
        self._choice = choice
        runs = finished_runs(output)
        self._sources = {run["run_id"]: run["input"] for run in runs}
        self.classes = self._chosen(self._known(runs))
        failed = connection.execute("SELECT count(*) FROM latest_images WHERE status <> ?", [OK])
        (self.failed,) = failed.fetchall()[0]
        self.written = self.boxes = 0

    def _known(self, runs: list[Manifest]) -> dict[int, str]:
        """Every label of the models that ran, seen or not: numbers stay from export to export."""
        seen = self._connection.sql("SELECT DISTINCT label_id, label FROM detections").fetchall()
        known = dict(seen)
        for run in runs:
            known.update((k, name) for k, name in enumerate(run["labels"]) if name)
        return dict(sorted(known.items()))

    def _chosen(self, known: dict[int, str]) -> dict[int, str]:
        wanted = self._choice.labels
        unknown = [label for label in wanted if label not in known.values()]
        if unknown:
            names = ", ".join(dict.fromkeys(known.values())) or "none"
            raise InputError(f"--labels {','.join(unknown)}: the labels are {names}")
        return {k: name for k, name in known.items() if not wanted or name in wanted}

    def images(self, suffix: str = "") -> Iterator[LabelledImage]:
        """Every labelled image, by run, shard and position; its `file` ends in `suffix`."""
        with SafeNames(suffix) as names:
            for key, rows in groupby(self._rows(), key=itemgetter(*range(_IMAGE_COLUMNS))):
                run, shard, _, image_id, model, width, height = key
                found = (row[_IMAGE_COLUMNS:] for row in rows)
                boxes = tuple(Box(*values) for values in found if values[0] is not None)
                self.written += 1
                self.boxes += len(boxes)
                paths = names.name(image_id, shard, self._source(run))
                yield LabelledImage(
                    self.written, *paths, image_id, shard, model, width, height, boxes
                )

    def _source(self, run: str) -> str:
        """INPUT of a run; FileNotFoundError, to ask again, where its manifest came or went."""
        if run not in self._sources:
            raise FileNotFoundError(f"the manifest of {run}")
        return str(self._sources[run])

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        choice = {"min_score": self._choice.min_score, "labels": list(self._choice.labels)}
        cursor = self._connection.execute(_ROWS, {"ok": OK, **choice})
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            yield from rows
