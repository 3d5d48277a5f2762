"""Pictures of a run for pages: fetched again from INPUT, made small, their boxes drawn.

Pictures are files that nobody checked, so they are read and decoded by the processes that also do
that for a run (pipeline/isolation/child.py). One that cannot be had in time is named; it stops
nothing.
"""

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg
from PIL import Image, ImageDraw, ImageFont

from jobs.output.catalog import read_catalog
from model.resize import ResizeRule
from pipeline.isolation.child import Child, ChildFailed, Row, read_rows_in_child
from pipeline.plan.shards import Shards, read_plan_tables, shards_of_table
from pipeline.schema import ENCODED, OK, UNREADABLE, Member, Shard
from pipeline.stages.formats import read_rows
from pipeline.stages.prepare import DECODE, Preparer
from pipeline.storage.files import StorageUnavailable, join
from pipeline.storage.urls import printable

SMALL = ResizeRule(shorter=400, longest=600)  # pixels: sharp on a fine screen at half of that
START_SECONDS = 20.0  # until both processes have imported what they need: 4 on two idle cores
SECONDS = 10.0  # for all pictures; the last may take SECONDS_EACH on top. Sixteen take one
SECONDS_EACH = 5.0
MOST_BYTES = 32 << 20  # of a loose file that is fetched for its picture
JPEG_QUALITY = 82
TEXT_SIGNS = 80  # of a box's text, at most
_BASIC = ImageFont.Layout.BASIC  # the other one fails on some texts

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

READABLE = ("files", "tar", "parquet")  # kinds of shards that hold pictures


@dataclass(frozen=True)
class Place:
    """Where an image lies: the shard as it was planned, and the image's `index_in_shard`."""

    shard: Shard
    index: int


@dataclass(frozen=True)
class Picture:
    """An image as displayed (EXIF undone), made small."""

    pixels: Pixels | None  # (rows, columns, 3); None where it could not be had
    why: str = ""  # it could not


@dataclass(frozen=True)
class Box:
    """A box to draw, in pixels of the image as displayed."""

    corners: tuple[float, float, float, float]  # x_min, y_min, x_max, y_max
    text: str  # "" for none
    colour: str  # "#rrggbb", light enough for black text


@dataclass(frozen=True)
class Planned:
    """The shards of a run: names of its archives, and how to find shards by their names."""

    archives: list[str]
    find: Callable[[Sequence[str]], dict[str, Shard]]


def plan_of_shards(shards: Shards) -> Planned:
    """Of a run under way, whose shards hold what opens them."""
    return _read_plan(str(shards.path))


def read_plan_of_run(output: str, run_id: str) -> Planned:
    """Of a finished run, by its plan.

    Secrets of signed URLs are no part of it: their pictures cannot be had again.
    """
    return _read_plan(join(output, read_catalog(output).manifests[run_id]["plan"]))


def _read_plan(url: str) -> Planned:
    archives: list[str] = []
    for table in read_plan_tables(url, ["shard", "kind"]):
        archives += table.filter(pc.not_equal(table["kind"], "files"))["shard"].to_pylist()
    return Planned(archives, lambda names: _find_shards(url, names))


def _find_shards(url: str, names: Sequence[str]) -> dict[str, Shard]:
    """Shards of a plan by their names, as far as it has them and they hold pictures.

    Detections of other tools, which `import` takes in, do not.
    """
    found: dict[str, Shard] = {}
    wanted = pa.array(sorted(set(names)), pa.string())
    for table in read_plan_tables(url):
        readable = pc.is_in(table["kind"], pa.array(READABLE))
        rows = table.filter(pc.and_(pc.is_in(table["shard"], wanted), readable))
        found.update((shard.shard, shard) for shard in shards_of_table(rows))
        if len(found) == len(wanted):
            break
    return found


_GONE = Picture(None, "the archive holds it no more")


class PictureReader:
    """Fetches pictures within bounds of time. Its processes start with it and end with `close`."""

    def __init__(self, resize: ResizeRule = SMALL, seconds: float = SECONDS):
        self.resize, self.seconds = resize, seconds
        self._late = Picture(None, f"left out: all together took more than {seconds:g} s")
        self._reading = Child(preload="jobs.report.pictures")
        self._reading.start()
        self._preparer = Preparer(resize, seconds=min(seconds, SECONDS_EACH))

    def __enter__(self) -> "PictureReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reading.close()
        self._preparer.child.close()

    def fetch(self, places: Sequence[Place]) -> list[Picture]:
        """A picture a place, in their order, those that cannot be had among them.

        Loose files are read together. Of an archive all is read up to the last picture wanted:
        choose pictures near its beginning.
        """
        found: dict[tuple[str, int], Picture] = {}
        self._wait()
        deadline = time.monotonic() + self.seconds
        for shard, wanted in _groups(places, found):
            seconds = min(SECONDS_EACH, deadline - time.monotonic())
            if seconds <= 0:
                break
            missing = _GONE
            try:
                # Rows first: a stream that is left unfinished ends its process.
                for row, key in zip(self._rows(shard, wanted, seconds), wanted, strict=False):
                    found[key] = self._decoded(row, deadline)
                    if time.monotonic() > deadline:
                        missing = self._late
                        break
            except StorageUnavailable as error:
                missing = Picture(None, f"{UNREADABLE}: {error}")
            found.update((key, missing) for key in wanted if key not in found)
        return [found.get((place.shard.shard, place.index), self._late) for place in places]

    def _wait(self) -> None:
        """Until both processes have started, for START_SECONDS: that is no picture's fault."""
        nothing = Shard("nothing", "files", ()), ()
        with suppress(ChildFailed):
            list(self._reading.stream("jobs.report.pictures:rows_at", nothing, START_SECONDS / 2))
        with suppress(ChildFailed):
            nobody: list[bytes] = []
            arguments = nobody, self.resize, self._preparer.max_pixels
            list(self._preparer.child.stream(DECODE, arguments, START_SECONDS / 2))

    def _rows(self, shard: Shard, wanted: list[tuple[str, int]], seconds: float) -> Iterator[Row]:
        """The row of each image that is `wanted` of a shard, each within `seconds`."""
        loose = shard.kind == "files"
        positions = range(len(wanted)) if loose else [index for _, index in wanted]

        def instead(_: int, why: ChildFailed) -> Row:
            return {"status": UNREADABLE, "error": f"while it was read: {why}"}

        return read_rows_in_child(
            self._reading,
            "jobs.report.pictures:rows_at",
            lambda number: (shard, tuple(positions[number:])),
            seconds,
            instead,
            go_on=loose,
        )

    def _decoded(self, row: Row, deadline: float) -> Picture:
        if row["status"] == OK:
            left = deadline - time.monotonic()
            self._preparer.seconds = max(0.1, min(SECONDS_EACH, left))
            table = pa.Table.from_pylist([row], schema=ENCODED)
            (prepared,) = self._preparer(table)
            (row,) = prepared.to_pylist()
        if row["status"] != OK:
            return Picture(None, f"{row['status']}: {row['error']}")
        flat = np.frombuffer(row["pixels"], np.uint8)
        return Picture(flat.reshape(row["rows"], row["columns"], 3))


def rows_at(shard: Shard, positions: tuple[int, ...]) -> Iterator[Row]:
    """Rows (ENCODED) of images at ascending positions of a shard. Runs in the reader's child."""
    if shard.kind == "files":
        members = tuple(shard.members[position] for position in positions)
        yield from read_rows(replace(shard, members=members), 0)
        return
    wanted = set(positions)
    rows = islice(read_rows(shard, positions[0]), positions[-1] - positions[0] + 1)
    for position, row in enumerate(rows, positions[0]):
        if position in wanted:
            yield row


def _groups(
    places: Sequence[Place], found: dict[tuple[str, int], Picture]
) -> Iterator[tuple[Shard, list[tuple[str, int]]]]:
    """What is read at once: all loose files as one shard, then each archive.

    With the shards come (shard, index) of their images, in the order of their rows. Files that are
    too large are `found` to be so.
    """
    loose: dict[tuple[str, int], Member] = {}
    archives: dict[str, tuple[Shard, set[int]]] = {}
    for place in places:
        key = place.shard.shard, place.index
        if place.shard.kind != "files":
            archives.setdefault(key[0], (place.shard, set()))[1].add(place.index)
        elif place.shard.members[place.index].size > MOST_BYTES:
            found[key] = Picture(None, f"left out: more than {MOST_BYTES >> 20} MiB")
        else:
            loose[key] = place.shard.members[place.index]
    if loose:
        yield Shard("pictures", "files", tuple(loose.values())), list(loose)
    for shard, positions in archives.values():
        yield shard, [(shard.shard, position) for position in sorted(positions)]


def draw_boxes(pixels: Pixels, size: tuple[int, int], boxes: Sequence[Box]) -> Pixels:
    """`pixels` (rows, columns, 3) with boxes of an image of `size` (width, height) drawn on them.

    The first box lies on top. Texts stand above their boxes, within the picture.
    """
    from matplotlib import get_data_path  # a third of a second, that readers' processes need not

    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    # By height, as pages show pictures side by side at the same height; narrow ones by width.
    file = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    signs = min(28, max(11, picture.height // 24, picture.width // 40))
    font = ImageFont.truetype(file, signs, layout_engine=_BASIC)
    line = max(1, round(picture.height / 160))
    scale = picture.width / size[0], picture.height / size[1]
    placed = [(box, tuple(c * scale[k % 2] for k, c in enumerate(box.corners))) for box in boxes]
    for box, (left, top, right, low) in reversed(placed):
        draw.rectangle((left - 1, top - 1, right + 1, low + 1), outline="black")
        draw.rectangle((left, top, right, low), outline=box.colour, width=line)
    for box, (left, top, _, _) in reversed(placed):
        if box.text:
            _write(draw, box, (left, top), font)
    return np.asarray(picture)


def _write(
    draw: ImageDraw.ImageDraw, box: Box, corner: tuple[float, float], font: ImageFont.FreeTypeFont
) -> None:
    """A box's text on its colour, above `corner`, or where the picture has room for it."""
    text = printable(box.text).replace("\n", " ")[:TEXT_SIGNS]
    width, height = font.getlength(text) + 4, font.size + 4
    left = max(0.0, min(corner[0], draw.im.size[0] - width))
    top = corner[1] - height if corner[1] >= height else corner[1]
    draw.rectangle((left, top, left + width, top + height), fill=box.colour)
    draw.text((left + 2, top + height / 2), text, fill="black", font=font, anchor="lm")


def data_uri(pixels: Pixels) -> str:
    """A picture (rows, columns, 3) as a JPEG within a URL, for `src` of an `img`."""
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), JPEG_QUALITY, "RGB", "420")
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
