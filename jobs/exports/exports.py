"""`detr-batch export`: the newest labels of an OUTPUT in the formats of other tools.

A format is a module with one function that writes from `reader.Labels`, into a file (`coco`) or
into a folder (`yolo`). A new format needs such a module and a line in EXPORTS.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TextIO

import duckdb

from jobs.accounting.plurals import counted
from jobs.exports import coco, labelstudio, table, voc, yolo
from jobs.exports.earlier_export import TABLE, Layout
from jobs.exports.pictures import Pictures
from jobs.exports.place import (
    FileTarget,
    Folder,
    FolderTarget,
    folder,
    is_local_folder,
    one_file,
    refuse_unwritable,
)
from jobs.exports.reader import Choice, Labels
from jobs.output.gone_objects import hide_gone_objects
from jobs.output.protected_files import refuse_images_within, refuse_within_output
from jobs.query import answer_query
from pipeline.storage import retries
from pipeline.storage.files import InputError
from pipeline.storage.urls import mask


@dataclass(frozen=True)
class ImageOptions:
    """What becomes of the images themselves."""

    copied: bool = False  # whether they are put beside the labels
    linked: bool = False  # whether local files are linked there instead of copied
    flat: bool = False  # whether all get names in one folder
    prefix: str = ""  # the address below which Label Studio finds them

    @property
    def placed(self) -> bool:
        return self.copied or self.linked


@dataclass(frozen=True)
class ToFile:
    """A format that is one file."""

    write: Callable[[Labels, TextIO], None]
    with_images: "ToFolder | None" = None  # what it is with the images

    def target(self, url: str, overwrite: bool) -> FileTarget:
        return FileTarget(url, overwrite)

    def __call__(self, labels: Labels, url: str, overwrite: bool) -> None:
        with one_file(url, overwrite) as file:
            self.write(labels, file)
            self.target(url, overwrite).check_free()  # a file may have appeared meanwhile


@dataclass(frozen=True)
class ToFolder:
    """A format that is a folder, with the images if they are wanted."""

    write: Callable[[Labels, Folder], None]
    layout: Layout
    placed: bool = False  # see ImageOptions
    linked: bool = False
    flat: bool = False
    looked_into: bool = True  # whether all readers look into the folders below that of the images

    def target(self, url: str, overwrite: bool) -> FolderTarget:
        return FolderTarget(url, overwrite, self.layout, self.placed)

    def __call__(self, labels: Labels, url: str, overwrite: bool) -> None:
        labels.flat = self.flat
        with folder(self.target(url, overwrite)) as place:
            if self.placed:
                self._write_with_images(labels, place)
            else:
                self.write(labels, place)
        if labels.nested and not self.looked_into:
            labels.remarks.append(
                f"{counted(labels.nested, 'image')} in folders below {self.layout.images}, where "
                "supervision does not look: --flat gives all of them names in one folder"
            )
        if not self.placed:
            self._say_where_images_belong(labels, url)

    def _say_where_images_belong(self, labels: Labels, url: str) -> None:
        labels.remarks.append(
            f"the images belong into {mask(url)}/{self.layout.images} under the names in "
            f"{TABLE}: --with-images puts them there"
        )

    def _write_with_images(self, labels: Labels, place: Folder) -> None:
        with Pictures(labels, place, self.layout.images, self.linked) as pictures:
            labels.select = pictures.place
            self.write(labels, place)
        if pictures.missing:
            labels.remarks.append(
                "images that cannot be had as they were labelled are left out with their boxes: "
                f"{pictures.missing_as_text()}. --present-only leaves out those that `label` has "
                "found gone from INPUT"
            )


EXPORTS: dict[str, ToFile | ToFolder] = {
    "coco": ToFile(coco.write, ToFolder(coco.write_folder, coco.LAYOUT)),
    "yolo": ToFolder(yolo.write, yolo.LAYOUT, looked_into=False),
    "labelstudio": ToFile(labelstudio.write),
    "voc": ToFolder(voc.write, voc.LAYOUT, looked_into=False),
    "csv": ToFile(table.write),
}


def export(
    output: str,
    url: str,
    to: str,
    choice: Choice,
    overwrite: bool = False,
    images: ImageOptions | None = None,
    present_only: bool = False,
) -> None:
    """Write the labels of `output` to `url`, and report on stderr what was written and left out.

    `present_only` leaves out the objects that are gone from INPUT. InputError if `url` is taken, if
    with `overwrite` something would be deleted that no export wrote, that is OUTPUT or that is an
    image of it, or if an argument has an invalid value.
    """
    choice.check()
    refuse_unwritable(url)
    form = _format(to, url, images or ImageOptions())
    target = form.target(url, overwrite)
    for place in target.places():
        refuse_within_output(output, place, "FILE")
    target.check_free()
    retries.person_waits = True

    def write(connection: duckdb.DuckDBPyConnection) -> tuple[Labels, int]:
        if overwrite and isinstance(target, FolderTarget):
            refuse_images_within(connection, target.places(), "FILE")
        gone = hide_gone_objects(connection, output) if present_only else 0
        with tempfile.TemporaryDirectory() as scratch:
            labels = Labels(connection, output, choice, scratch)
            form(labels, url, overwrite)
        return labels, gone

    labels, gone = answer_query(output, write)
    print(
        f"{counted(labels.boxes, 'box')} of {counted(labels.written, 'image')} in {mask(url)}",
        file=sys.stderr,
    )
    for line in _left_out(labels, gone) + labels.remarks:
        print(line, file=sys.stderr)


def _left_out(labels: Labels, gone: int) -> list[str]:
    """Return a line for each reason why something of OUTPUT is not in the export."""
    lines = []
    if labels.failed:
        lines.append(
            f"left out: {counted(labels.failed, 'image')} that could not be labelled; why, say the "
            "rows of latest_images whose status is not 'ok'"
        )
    if labels.unnamed:
        lines.append(
            f"left out: {counted(labels.unnamed, 'box')}; the model has no name for the label id"
        )
    if gone:
        lines.append(f"left out: {counted(gone, 'object')} gone from INPUT")
    return lines


def _format(to: str, url: str, images: ImageOptions) -> ToFile | ToFolder:
    """Return the format with these options. InputError for options that do not fit it."""
    form = EXPORTS[to]
    if images.prefix and to != "labelstudio":
        raise InputError(f"--image-prefix is for --to labelstudio, and this is --to {to}")
    if images.prefix and not labelstudio.SHOWN.match(images.prefix):
        raise InputError(
            f"--image-prefix {mask(images.prefix)}: Label Studio shows http://, https://, s3://, "
            "gs://, azure-blob:// and /data/..."
        )
    if images.prefix:
        return ToFile(partial(labelstudio.write, prefix=images.prefix))
    if images.placed and isinstance(form, ToFile) and form.with_images is not None:
        form = form.with_images
        if url.lower().endswith(".json"):
            raise InputError(f"FILE {mask(url)}: with the images {to} is a folder; give its name")
    if not (images.placed or images.flat):
        return form
    option = "--flat" if images.flat else "--with-images"
    option = "--link-images" if images.linked else option
    if isinstance(form, ToFile):
        raise InputError(
            f"{option}: {to} is one file; yolo and voc are folders, and coco is one with "
            "--with-images"
        )
    if images.linked and not is_local_folder(url):
        raise InputError(f"--link-images: {mask(url)} can hold no links; give --with-images")
    return replace(form, placed=images.placed, linked=images.linked, flat=images.flat)
