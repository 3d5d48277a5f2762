"""The source of every export format: a stream of the newest labels, image by image."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import duckdb
import numpy as np

from jobs.boxes.choice import choose_boxes, numbers_of_class
from jobs.boxes.options import BoxOptions
from jobs.exports.classes import model_classes
from jobs.exports.names import PLAIN, NameRules, SafeNames
from jobs.output.manifest import Manifest
from jobs.output.run_documents import read_document
from jobs.output.views import finished_runs, limit_memory
from pipeline.schema import OK
from pipeline.storage.errors import CommandFailed
from pipeline.storage.files import InputError, canonical_url
from pipeline.storage.urls import mask

MEMORY = "256MB"  # memory limit of DuckDB, which sorts larger data on disk
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Choice:
    """Selects the boxes to export. An image without such a box is exported without boxes."""

    min_score: float = 0.0
    labels: tuple[str, ...] = ()  # names or numbers; empty: all labels
    boxes: BoxOptions = field(default_factory=BoxOptions)  # further rules

    def check(self) -> None:
        """InputError for values that make no sense, or contradict one another."""
        if not 0 <= self.min_score <= 1:
            raise InputError(f"--min-score {self.min_score}: give 0 to 1")
        if self.labels and self.boxes.classes is not None:
            raise InputError("--labels and --classes both choose classes: give one")
        self.boxes.check_boxes()


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
    run: str
    shard: str
    index: int  # its index_in_shard
    uri: str
    etag: str | None  # None for images of an import
    model: str
    width: int
    height: int
    boxes: tuple[Box, ...]

    @property
    def is_archived(self) -> bool:
        """Whether it is a member of an archive or a row of a Parquet file."""
        return is_archived(self.image_id, self.shard, self.uri)


def is_archived(image_id: str, shard: str, uri: str) -> bool:
    """Whether an image is a member of an archive or a row of a Parquet file, by its row."""
    return image_id.startswith(f"{shard}#") or uri != image_id


# Columns of the table that maps label files to images.
MAPPING = ("file", "picture", "image_id", "shard", "width", "height")


def mapping_row(image: LabelledImage) -> tuple[str | int, ...]:
    """Return the columns of MAPPING after the first."""
    return image.name, image.image_id, image.shard, image.width, image.height


# Carried columns of images may have names of columns of boxes, so only the own ones are taken.
# The query joins `detections`: the view `latest` would search for the newest images a second time.
_ROWS = """
SELECT run, shard, index_in_shard, image_id, uri, etag, model, width, height,
    label_id, score, x_min, y_min, x_max, y_max
FROM (
    SELECT run, shard, index_in_shard, image_id, uri, etag, model, width, height
    FROM latest_images WHERE status = $ok
)
LEFT JOIN (
    SELECT * FROM detections
    WHERE score >= $min_score::FLOAT AND list_contains($label_ids, label_id)
) USING (run, shard, image_id)
ORDER BY run, shard, index_in_shard, image_id, detection
"""
_IMAGE_COLUMNS = 9
_UNNAMED = """
SELECT count(*) FROM latest
WHERE score >= $min_score::FLOAT AND list_contains($label_ids, label_id) IS NOT TRUE
"""


class Labels:
    """The selected labels of an OUTPUT. `images` can be called once.

    `classes` maps the label ids of all classes to their names, in order of ids, and `chosen` those
    of the classes whose boxes are exported. Both are those that `choice` renames the classes of the
    model to. `nested` is the number of images whose names have a folder, and `unnamed` that of the
    boxes that are left out because their label id has no name. `remarks` are lines for the user.

    InputError if `choice` names a label that OUTPUT's model does not know, or contradicts itself.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, output: str, choice: Choice, scratch: str
    ):
        """`connection` has the views of OUTPUT; DuckDB sorts in the folder `scratch`."""
        limit_memory(connection, MEMORY, scratch)
        self._connection = connection
        self._choice = choice
        self.output = output
        self.runs = {run["run_id"]: run for run in finished_runs(output)}
        own, self.remarks = model_classes(connection, list(self.runs.values()))
        self._of_model = self._select_labels(own)
        self._rules = choose_boxes(choice.boxes, own, choice.min_score)
        self.classes = dict(self._rules.names)
        self.chosen = self._rules.kept_of(self._of_model)
        self.failed = self._count("SELECT count(*) FROM latest_images WHERE status <> $ok", ok=OK)
        of_model = {"min_score": choice.min_score, "label_ids": list(own)}
        self.unnamed = self._count(_UNNAMED, **of_model)  # only named classes have own thresholds
        self._folder_of_run = cache(lambda run: image_folder(output, self._manifest(run)))
        # Takes the images and yields those that are exported.
        self.select: Callable[[Iterator[LabelledImage]], Iterator[LabelledImage]] = iter
        self.flat = False  # whether all names are in one folder
        self.written = self.boxes = self.nested = 0

    def _select_labels(self, own: dict[int, str]) -> dict[int, str]:
        """The classes of the model whose boxes are read."""
        wanted = self._choice.labels
        numbers = {label: numbers_of_class(own, label) for label in wanted}
        unknown = [label for label, found in numbers.items() if not found]
        if unknown:
            names = ", ".join(dict.fromkeys(own.values())) or "none"
            raise InputError(f"--labels {','.join(unknown)}: the labels are {names}")
        chosen = {number for found in numbers.values() for number in found}
        return {k: name for k, name in own.items() if not wanted or k in chosen}

    def _count(self, sql: str, **parameters: Any) -> int:
        (count,) = self._connection.execute(sql, parameters).fetchall()[0]
        return int(count)

    def _selection(self) -> dict[str, Any]:
        """The boxes that are read. The rules choose from them."""
        own_thresholds = [score for _, score in self._rules.rules.thresholds]
        return {
            "min_score": min([self._choice.min_score, *own_thresholds]),
            "label_ids": list(self._of_model),
        }

    def images(self, rules: NameRules = PLAIN) -> Iterator[LabelledImage]:
        """Yield every labelled image, by run, shard and position, named by `rules`."""
        for image in self.select(self._read_images(rules)):
            self.written += 1
            self.boxes += len(image.boxes)
            self.nested += "/" in image.name
            yield image

    def folder_of(self, image: LabelledImage) -> str:
        """Return the URL below which an image lies, if it lies there."""
        return self._folder_of_run(image.run)

    def _read_images(self, rules: NameRules) -> Iterator[LabelledImage]:
        with SafeNames(replace(rules, flat=self.flat)) as names:
            rows = groupby(self._fetch_rows(), key=itemgetter(*range(_IMAGE_COLUMNS)))
            for number, (key, boxes_of_image) in enumerate(rows, 1):
                run, shard, index, image_id, uri, etag, model, width, height = key
                found = [row[_IMAGE_COLUMNS:] for row in boxes_of_image]
                boxes = self._select_boxes([row for row in found if row[0] is not None])
                if boxes and not (width and height and min(width, height) > 0):
                    raise CommandFailed(
                        f"{mask(image_id)} has a size of {width} x {height} in run {run}, which is "
                        "none: its table was edited, or is damaged (`detr-batch runs --verify` "
                        "names it)"
                    )
                is_file = not is_archived(image_id, shard, uri)
                paths = names.name(image_id, shard, self._folder_of_run(run), is_file)
                place = (run, shard, index, uri, etag)
                yield LabelledImage(number, *paths, image_id, *place, model, width, height, boxes)

    def _select_boxes(self, rows: list[tuple[Any, ...]]) -> tuple[Box, ...]:
        """The boxes of one image that are exported, from rows (label_id, score, x_min, ...)."""
        if not rows or self._rules.is_default:
            return tuple(Box(row[0], self.classes[row[0]], *row[1:]) for row in rows)
        labels = np.array([row[0] for row in rows], np.int64)
        values = np.array([row[1:] for row in rows], np.float32)  # as the tables have them
        scores, boxes = values[:, 0], values[:, 1:]
        kept, new = self._rules.rules.select(scores, labels, boxes, self._choice.min_score)
        return tuple(
            Box(label_id, self.classes[label_id], *rows[at][1:])
            for at, label_id in zip(kept.tolist(), new.tolist(), strict=True)
        )

    def _manifest(self, run: str) -> Manifest:
        """Return the manifest of a run.

        FileNotFoundError if another command has added or removed the run's manifest meanwhile; the
        caller then repeats the query.
        """
        if run not in self.runs:
            raise FileNotFoundError(f"the manifest of {run}")
        return self.runs[run]

    def _fetch_rows(self) -> Iterator[tuple[Any, ...]]:
        cursor = self._connection.execute(_ROWS, {"ok": OK, **self._selection()})
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            yield from rows


def image_folder(output: str, run: Manifest) -> str:
    """Return the URL below which the images of a run lie: its INPUT, or --images of `import`."""
    try:
        options = read_document(output, run["run_id"], "run.json").get("options") or {}
    except FileNotFoundError:  # the oldest versions wrote none
        return run["input"]
    images = options.get("images") if "detections" in options else None
    return canonical_url(str(images)) if images else run["input"]
