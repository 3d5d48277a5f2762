"""Images of a run for pages: fetched again from INPUT, and made small.

Nobody has checked the image files, so the same processes read and decode them as in a run
(pipeline/isolation/child.py). An image that cannot be had in time is reported with the reason; it
stops nothing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.output.catalog import read_catalog
from model.resize import ResizeRule
from pipeline.formats.files import FETCH_AT_ONCE
from pipeline.formats.members import make_member, open_member
from pipeline.formats.read import read_rows
from pipeline.isolation.child import ChildFailed, Row, read_rows_in_child
from pipeline.isolation.frames import table_of_rows
from pipeline.plan.shards import Shards, read_plan_tables, shards_of_table
from pipeline.schema import ENCODED, NOT_ALLOWED, OK, UNREADABLE, UNSEEN, Member, Shard
from pipeline.stages.prepare import DECODE, Preparer
from pipeline.stages.read import reading_child
from pipeline.storage.availability import know
from pipeline.storage.files import StorageUnavailable, join, object_info
from pipeline.storage.protocols import WEB, protocol_of

# pixels; this is sharp on a high-density screen at half the size
SMALL = ResizeRule(shorter=400, longest=600)
# seconds until a process has imported its modules; it takes 2 on idle cores, and took 12 on cores
# with eight times as much to do
START_SECONDS = 60.0
# seconds for all images; the last may take SECONDS_EACH more; 16 images take about 1 second
SECONDS = 10.0
SECONDS_EACH = 5.0  # seconds for one image
MOST_BYTES = 32 << 20  # size limit of a loose file that is fetched for the page

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

READABLE = ("files", "tar", "parquet")  # kinds of shards that hold images


@dataclass(frozen=True)
class Place:
    """Where an image is: its shard as it was planned, and its `index_in_shard`."""

    shard: Shard
    index: int


@dataclass(frozen=True)
class FetchedImage:
    """A decoded image as displayed (EXIF orientation applied), made small."""

    pixels: Pixels | None  # (rows, columns, 3); None where the image could not be read
    why: str = ""  # why the image could not be read; "" where it was read


@dataclass(frozen=True)
class Planned:
    """The shards of a run: the names of its archives, and a function that finds shards by name."""

    archives: list[str]
    find: Callable[[Sequence[str]], dict[str, Shard]]


def plan_of_shards(shards: Shards) -> Planned:
    """Return the plan of a run in progress, whose shards keep the secrets that open them."""
    return _read_plan(str(shards.path))


def read_plan_of_run(output: str, run_id: str) -> Planned:
    """Read the plan of a finished run.

    A plan does not keep the secrets of signed URLs, so images behind such URLs cannot be fetched
    again.
    """
    return _read_plan(join(output, read_catalog(output).manifests[run_id]["plan"]))


def _read_plan(url: str) -> Planned:
    archives: list[str] = []
    for table in read_plan_tables(url, ["shard", "kind"]):
        archives += table.filter(pc.not_equal(table["kind"], "files"))["shard"].to_pylist()
    return Planned(archives, lambda names: _find_shards(url, names))


def _find_shards(url: str, names: Sequence[str]) -> dict[str, Shard]:
    """Find those shards of a plan that have one of these names and hold images.

    Shards of detections from other tools, which `import` publishes, hold no images.
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


_GONE = FetchedImage(None, "the archive holds it no more")


class PictureReader:
    """Fetches images within time limits.

    Its two processes start when it is created, and end with `close`.
    """

    def __init__(self, resize: ResizeRule = SMALL, seconds: float = SECONDS):
        self.resize, self.seconds = resize, seconds
        self._late = FetchedImage(None, f"left out: all together took more than {seconds:g} s")
        self._reading = reading_child("jobs.report.pictures")
        self._reading.start()
        self._preparer = Preparer(resize, seconds=min(seconds, SECONDS_EACH))

    def __enter__(self) -> "PictureReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reading.close()
        self._preparer.child.close()

    def fetch(self, places: Sequence[Place]) -> list[FetchedImage]:
        """Return one result for each place, in the same order; failed images carry their reason.

        Loose files are read together. An archive is read up to the last wanted image, so choose
        images near its beginning.
        """
        found: dict[tuple[str, int], FetchedImage] = {}
        self._wait()
        deadline = time.monotonic() + self.seconds
        for shard, wanted in _group_places(places, found):
            seconds = min(SECONDS_EACH, deadline - time.monotonic())
            if seconds <= 0:
                break
            missing = _GONE
            try:
                # The rows are the first argument of zip: a stream left unfinished ends its process.
                for row, key in zip(self._read_rows(shard, wanted, seconds), wanted, strict=False):
                    found[key] = self._decode(row, deadline)
                    if time.monotonic() > deadline:
                        missing = self._late
                        break
            except StorageUnavailable as error:
                missing = FetchedImage(None, f"{UNREADABLE}: {error}")
            found.update((key, missing) for key in wanted if key not in found)
        return [found.get((place.shard.shard, place.index), self._late) for place in places]

    def _wait(self) -> None:
        """Wait until both processes have started, START_SECONDS at most for each.

        Start-up does not count against the time limit of any image.
        """
        nothing = Shard("nothing", "files", ()), ()
        with suppress(ChildFailed):
            list(self._reading.stream("jobs.report.pictures:rows_at", nothing, START_SECONDS))
        with suppress(ChildFailed):
            nobody: list[bytes] = []
            arguments = nobody, self.resize, self._preparer.max_pixels
            list(self._preparer.child.stream(DECODE, arguments, START_SECONDS))

    def _read_rows(
        self, shard: Shard, wanted: list[tuple[str, int]], seconds: float
    ) -> Iterator[Row]:
        """Read the row of each image in `wanted` from a shard, each within `seconds`."""
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
            rows=len(wanted) if loose else None,
        )

    def _decode(self, row: Row, deadline: float) -> FetchedImage:
        if row["status"] == OK:
            left = deadline - time.monotonic()
            self._preparer.seconds = max(0.1, min(SECONDS_EACH, left))
            table = table_of_rows([row], ENCODED)
            (prepared,) = self._preparer(table)
            (row,) = prepared.to_pylist()
        if row["status"] != OK:
            return FetchedImage(None, f"{row['status']}: {row['error']}")
        flat = np.frombuffer(row["pixels"], np.uint8)
        return FetchedImage(flat.reshape(row["rows"], row["columns"], 3))


def rows_at(shard: Shard, positions: tuple[int, ...]) -> Iterator[Row]:
    """Read rows (ENCODED) at ascending positions of a shard; runs in the reader's child process.

    Loose files at other positions only tell which other stores there are: an image whose store does
    not answer fails alone if another one does.
    """
    if shard.kind == "files":
        know(member.uri for member in shard.members if member.etag != NOT_ALLOWED)
        with ThreadPoolExecutor(FETCH_AT_ONCE) as pool:
            members = tuple(pool.map(_look_at, (shard.members[place] for place in positions)))
        yield from read_rows(replace(shard, members=members), 0)
        return
    wanted = set(positions)
    rows = islice(read_rows(shard, positions[0]), positions[-1] - positions[0] + 1)
    for position, row in enumerate(rows, positions[0]):
        if position in wanted:
            yield row


def _look_at(member: Member) -> Member:
    """Return an object in the version that is there now, if none was planned.

    An object that cannot be looked at is returned as it is, and reading it says why.
    """
    if member.etag != UNSEEN or protocol_of(member.uri) in WEB:
        return member
    try:
        fs, path = open_member(member, "image")
        return replace(make_member(fs, path, object_info(fs, path)), uri=member.uri)
    except Exception:  # stores raise many types
        return member


def _group_places(
    places: Sequence[Place], found: dict[tuple[str, int], FetchedImage]
) -> Iterator[tuple[Shard, list[tuple[str, int]]]]:
    """Group the places that are read together: all loose files as one shard, then each archive.

    Each shard comes with the (shard, index) keys of its images, in the order of their rows. Files
    that are too large are recorded in `found` with that reason.
    """
    loose: dict[tuple[str, int], Member] = {}
    archives: dict[str, tuple[Shard, set[int]]] = {}
    for place in places:
        key = place.shard.shard, place.index
        if place.shard.kind != "files":
            archives.setdefault(key[0], (place.shard, set()))[1].add(place.index)
        elif place.shard.members[place.index].size > MOST_BYTES:
            found[key] = FetchedImage(None, f"left out: more than {MOST_BYTES >> 20} MiB")
        else:
            loose[key] = place.shard.members[place.index]
    if loose:
        yield Shard("pictures", "files", tuple(loose.values())), list(loose)
    for shard, positions in archives.values():
        yield shard, [(shard.shard, position) for position in sorted(positions)]
