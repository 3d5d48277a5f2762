"""What a plan still asks for: its shards, less what is staged of them already."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.plan.shards import Shards
from pipeline.schema import RANGES, Work

Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Staged:
    """What is under a staging folder: each image once, in ranges sorted by shard and position."""

    shards: pa.Array  # names, sorted
    files: pa.Array  # names, sorted
    found: Numbers  # images of each shard
    sizes: Numbers  # images that each shard has in all; -1 where its end was not reached
    status: pa.Array  # of each range, as the next
    shard: Numbers  # place in `shards`
    file: Numbers  # place in `files`: the first that holds the images
    start: Numbers
    stop: Numbers

    @property
    def images(self) -> int:
        return int(self.found.sum())

    def count_by_status(self) -> dict[str, int]:
        """Images by status."""
        table = pa.table({"status": self.status, "images": self.stop - self.start})
        rows = table.group_by("status").aggregate([("images", "sum")]).to_pylist()
        return {row["status"]: row["images_sum"] for row in rows}

    def positions_of(self, shards: pa.Array) -> Numbers:
        """Where each shard is in `shards`; -1 where nothing of it is staged."""
        found: Numbers = pc.fill_null(pc.index_in(shards, self.shards), -1).to_numpy()
        return found.astype(np.int64)

    def ranges(self, first: int, last: int) -> slice:
        """Which ranges are of the shards at places from `first` to `last`."""
        left = np.searchsorted(self.shard, first)
        return slice(int(left), int(np.searchsorted(self.shard, last, "right")))

    def finished_spans(self, place: int) -> list[tuple[int, int]]:
        """What of the shard at a place is staged, from `start` to before `stop`."""
        of_shard = self.ranges(place, place)
        bounds = self.start[of_shard].tolist(), self.stop[of_shard].tolist()
        return list(zip(*bounds, strict=True))


def remaining_work(shards: Shards, staged: Staged) -> tuple[list[Work], int]:
    """What is left to read, a row group of the plan each, and its bytes; the largest come first."""
    outline = shards.outline
    places = staged.positions_of(outline["shard"])
    found, sizes = (np.append(column, -2)[places] for column in (staged.found, staged.sizes))
    rest = np.flatnonzero((found != sizes) | (places < 0))
    work: dict[int, Work] = {}
    rows = (outline[name].to_numpy()[rest].tolist() for name in ("group", "row"))
    for group, row, place in zip(*rows, places[rest].tolist(), strict=True):
        one = work.setdefault(group, Work(group, [], [], []))
        one.rows.append(row)
        one.done.append(staged.finished_spans(place) if place >= 0 else [])
        one.ended.append(place >= 0 and bool(staged.sizes[place] >= 0))
    in_order = sorted(work.values(), key=lambda one: -len(one.rows))
    return in_order, int(outline["size"].to_numpy()[rest].sum())


def merge_ranges(tables: Iterable[pa.Table]) -> Staged:
    """What tables of schema RANGES tell together.

    An image that several files hold, as after a task that ran again, counts in the first of them.
    """
    found = pa.concat_tables([RANGES.empty_table(), *tables]).combine_chunks()
    shards, files = (pc.unique(found[name]).sort() for name in ("shard", "file"))
    sizes = np.full(len(shards), -1)
    columns = [pc.index_in(found["shard"], shards), pc.index_in(found["file"], files)]
    columns += [found["start"], found["stop"], pa.array(np.arange(len(found)))]
    ranges = np.stack([column.to_numpy().astype(np.int64) for column in columns])
    np.maximum.at(sizes, ranges[0], pc.fill_null(found["shard_size"], -1).to_numpy())
    ranges = _sort_ranges(ranges)
    shard, _, start, stop, _ = ranges
    again = (shard[1:] == shard[:-1]) & (start[1:] < stop[:-1])
    if again.any():
        twice = np.isin(shard, shard[1:][again])
        once = _drop_repeats(ranges[:, twice])
        ranges = _sort_ranges(np.concatenate([ranges[:, ~twice], once], axis=1))
    shard, file, start, stop, row = ranges
    counts = np.bincount(shard, stop - start, len(shards)).astype(np.int64)
    status = found["status"].take(pa.array(row))
    return Staged(shards, files, counts, sizes, status, shard, file, start, stop)


def _sort_ranges(ranges: Numbers) -> Numbers:
    """(shard, file, start, stop, row) of each, sorted by shard and start, then by file."""
    return ranges[:, np.lexsort((ranges[1], ranges[2], ranges[0]))]


def _drop_repeats(ranges: Numbers) -> Numbers:
    """Their positions one by one, of which each shard has each in its first file alone."""
    lengths = ranges[3] - ranges[2]
    each = np.repeat(ranges, lengths, axis=1)
    each[2] += np.arange(each.shape[1]) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    each[3] = each[2] + 1
    each = _sort_ranges(each)
    new = (np.diff(each[0]) != 0) | (np.diff(each[2]) != 0)
    return each[:, np.append(True, new)]
