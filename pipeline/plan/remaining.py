"""The remaining work of a plan: its shards without the images that are already staged."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.plan.shards import Shards
from pipeline.schema import RANGES, Work

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Staged:
    """The images in a staging folder, each once, as ranges sorted by shard and position.

    `found`, `sizes` and `boxes` have one element per shard. `status`, `shard`, `file`, `start` and
    `stop` have one element per range of positions [start, stop).
    """

    shards: pa.Array  # names, sorted
    files: pa.Array  # names, sorted
    found: Numbers  # number of staged images of each shard
    sizes: Numbers  # number of all images of each shard; -1 if its end was not reached
    boxes: Numbers  # number of staged boxes of each shard; those of repeated images count each time
    status: pa.Array
    shard: Numbers  # index into `shards`
    file: Numbers  # index into `files` of the first file that holds the images
    start: Numbers
    stop: Numbers
    canaries: tuple[str, ...] = ()  # what detectors gave for canaries, each text once

    @property
    def images(self) -> int:
        """The number of staged images."""
        return int(self.found.sum())

    def count_by_status(self) -> dict[str, int]:
        """The number of images for each status."""
        table = pa.table({"status": self.status, "images": self.stop - self.start})
        rows = table.group_by("status").aggregate([("images", "sum")]).to_pylist()
        return {row["status"]: row["images_sum"] for row in rows}

    def positions_of(self, shards: pa.Array) -> Numbers:
        """The index of each shard in `self.shards`, or -1 if no image of it is staged."""
        found: Numbers = pc.fill_null(pc.index_in(shards, self.shards), -1).to_numpy()
        return found.astype(np.int64)

    def ranges(self, first: int, last: int) -> slice:
        """The ranges that belong to the shards with indices from `first` to `last` inclusive."""
        left = np.searchsorted(self.shard, first)
        return slice(int(left), int(np.searchsorted(self.shard, last, "right")))

    def finished_spans(self, place: int) -> list[tuple[int, int]]:
        """The staged spans of positions [start, stop) of the shard with the index `place`."""
        of_shard = self.ranges(place, place)
        bounds = self.start[of_shard].tolist(), self.stop[of_shard].tolist()
        return list(zip(*bounds, strict=True))


def remaining_work(
    shards: Shards, staged: Staged, files_first: bool = False
) -> tuple[list[Work], int]:
    """The remaining work, one `Work` per row group of the plan, and its size in bytes.

    The row groups with the most remaining shards come first, or those that have shards of loose
    files, where `files_first`. The size is the size of all objects of the remaining shards, as far
    as it is known.
    """
    outline = shards.outline
    indices = staged.positions_of(outline["shard"])
    found, sizes = (np.append(column, -2)[indices] for column in (staged.found, staged.sizes))
    rest = np.flatnonzero((found != sizes) | (indices < 0))
    work: dict[int, Work] = {}
    loose = pc.equal(outline["kind"], "files").to_numpy()[rest]
    of_files = set(outline["group"].to_numpy()[rest][loose].tolist()) if files_first else set()
    rows = (outline[name].to_numpy()[rest].tolist() for name in ("group", "row"))
    for group, row, index in zip(*rows, indices[rest].tolist(), strict=True):
        one = work.setdefault(group, Work(group, [], [], []))
        one.rows.append(row)
        one.done.append(staged.finished_spans(index) if index >= 0 else [])
        one.ended.append(index >= 0 and bool(staged.sizes[index] >= 0))
    in_order = sorted(work.values(), key=lambda one: (one.group not in of_files, -len(one.rows)))
    return in_order, int(outline["size"].to_numpy()[rest].sum())


def merge_ranges(tables: Iterable[pa.Table]) -> Staged:
    """Merge tables of schema RANGES.

    Several files may hold the same image, for example after a task ran again. Such an image counts
    in the first of these files.
    """
    found = pa.concat_tables([RANGES.empty_table(), *tables]).combine_chunks()
    shards, files = (pc.unique(found[name]).sort() for name in ("shard", "file"))
    sizes, boxes = np.full(len(shards), -1), np.zeros(len(shards), np.int64)
    columns = [pc.index_in(found["shard"], shards), pc.index_in(found["file"], files)]
    columns += [found["start"], found["stop"], pa.array(np.arange(len(found)))]
    ranges = np.stack([column.to_numpy().astype(np.int64) for column in columns])
    np.maximum.at(sizes, ranges[0], pc.fill_null(found["shard_size"], -1).to_numpy())
    np.add.at(boxes, ranges[0], found["boxes"].to_numpy())
    ranges = _sort_ranges(ranges)
    shard, _, start, stop, _ = ranges
    overlaps = (shard[1:] == shard[:-1]) & (start[1:] < stop[:-1])
    if overlaps.any():
        affected = np.isin(shard, shard[1:][overlaps])
        deduplicated = _drop_repeats(ranges[:, affected])
        ranges = _sort_ranges(np.concatenate([ranges[:, ~affected], deduplicated], axis=1))
    shard, file, start, stop, row = ranges
    counts = np.bincount(shard, stop - start, len(shards)).astype(np.int64)
    status = found["status"].take(pa.array(row))
    canaries = tuple(pc.unique(pc.list_flatten(found["canaries"])).to_pylist())
    return Staged(shards, files, counts, sizes, boxes, status, shard, file, start, stop, canaries)


def _sort_ranges(ranges: Numbers) -> Numbers:
    """Columns (shard, file, start, stop, row), sorted by shard, then by start, then by file."""
    return ranges[:, np.lexsort((ranges[1], ranges[2], ranges[0]))]


def _drop_repeats(ranges: Numbers) -> Numbers:
    """Split ranges into single positions. Each position of a shard is kept for its first file."""
    lengths = ranges[3] - ranges[2]
    each = np.repeat(ranges, lengths, axis=1)
    each[2] += np.arange(each.shape[1]) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    each[3] = each[2] + 1
    each = _sort_ranges(each)
    new = (np.diff(each[0]) != 0) | (np.diff(each[2]) != 0)
    return each[:, np.append(True, new)]
