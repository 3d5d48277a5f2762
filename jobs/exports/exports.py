"""`detr-batch export`: the newest labels of an OUTPUT in the formats of other tools.

A format is a module with one function that writes from `reader.Labels`, into a file (`coco`) or
into a folder (`yolo`). A new format needs such a module and a line in EXPORTS.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

import duckdb

from jobs.exports import coco, labelstudio, table, voc, yolo
from jobs.exports.place import TABLE, Folder, check_free, folder, one_file
from jobs.exports.reader import Choice, Labels
from jobs.output.outside import refuse_within_output
from jobs.query import answer_query
from pipeline.storage.urls import mask, printable


@dataclass(frozen=True)
class ToFile:
    """A format that is one file."""

    write: Callable[[Labels, TextIO], None]
    entries: tuple[str, ...] = ()

    def __call__(self, labels: Labels, url: str) -> None:
        with one_file(url) as file:
            self.write(labels, file)


@dataclass(frozen=True)
class ToFolder:
    """A format that is a folder of `entries`; the entry `table` maps files to images."""

    write: Callable[[Labels, Folder], None]
    entries: tuple[str, ...]
    table: str

    def __call__(self, labels: Labels, url: str) -> None:
        with folder(url, self.entries, self.table) as place:
            self.write(labels, place)


EXPORTS: dict[str, ToFile | ToFolder] = {
    "coco": ToFile(coco.write),
    "yolo": ToFolder(yolo.write, yolo.ENTRIES, TABLE),
    "labelstudio": ToFile(labelstudio.write),
    "voc": ToFolder(voc.write, voc.ENTRIES, TABLE),
    "csv": ToFile(table.write),
}


def export(output: str, url: str, to: str, choice: Choice, overwrite: bool = False) -> None:
    """Write the labels of `output` to `url`, and report on stderr what was written and left out.

    InputError if `url` is taken, or if an argument has an invalid value.
    """
    choice.check()
    form = EXPORTS[to]
    refuse_within_output(output, url, "FILE")
    check_free(url, form.entries, overwrite)

    def write(connection: duckdb.DuckDBPyConnection) -> Labels:
        with tempfile.TemporaryDirectory() as scratch:
            labels = Labels(connection, output, choice, scratch)
            form(labels, url)
        return labels

    labels = answer_query(output, write)
    print(f"{labels.boxes} boxes of {labels.written} images in {mask(url)}", file=sys.stderr)
    if labels.failed:
        print(
            f"{labels.failed} images that could not be labelled are left out; why, say the rows of "
            "latest_images whose status is not 'ok'",
            file=sys.stderr,
        )
    if to == "labelstudio":
        interface = printable(labelstudio.labeling_config(labels.classes))
        print(f"labeling interface: {interface}", file=sys.stderr)
