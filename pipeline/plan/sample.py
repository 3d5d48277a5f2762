"""A small sample of a plan, drawn evenly over all of it, from which a probe measures.

Loose files are drawn from equal parts of their list, one from each. Archives are drawn by their
bytes, and of each the first images are read: a later one cannot be had without those before it.
The same plan gives the same sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.plan.remaining import Flags, Numbers
from pipeline.plan.shards import Shards, shards_of_table
from pipeline.schema import Member, Shard

GROUPS = 20  # shards of loose files, each drawn over the whole plan
MOST_ARCHIVES = 16  # each is opened, and read from its beginning
PROBE = "probe-"  # begins the names of shards of loose files


@dataclass(frozen=True)
class Sample:
    """A sample of the images of a plan, in random order."""

    shards: list[Shard]
    loose: int  # number of loose files of the plan
    # Bytes of its archives; one of unknown size counts as the mean of the others. 0 if there are no
    # archives, None if the size of none is known.
    archive_bytes: int | None


def sample_plan(shards: Shards, images: int) -> Sample:
    """Draw about `images` images of a plan. All of them if there are no more."""
    outline = shards.outline
    is_loose = pc.equal(outline["kind"], "files").to_numpy(zero_copy_only=False)
    objects, sizes = (outline[name].to_numpy() for name in ("objects", "size"))
    loose, weights = int(objects[is_loose].sum()), _archive_sizes(is_loose, sizes)
    archive_bytes = None if weights is None else int(weights.sum())
    random = np.random.default_rng(_seed(outline))
    of_loose = round(images * _share_of_loose(int(sizes[is_loose].sum()), loose, archive_bytes))
    of_loose = min(loose, max(of_loose, min(loose, 1)))
    of_archives = images - of_loose if not is_loose.all() else 0
    members = list(_members(shards, np.where(is_loose, objects, 0), _even(loose, of_loose, random)))
    random.shuffle(members)
    found = [
        Shard(f"{PROBE}{group}", "files", tuple(members[group::GROUPS]), access=_access(shards))
        for group in range(min(GROUPS, len(members)))
    ]
    weights = ~is_loose if weights is None else weights
    found += _archives(shards, _archive_limits(weights, of_archives, random))
    order = random.permutation(len(found))
    return Sample([found[place] for place in order], loose, archive_bytes)


def _seed(outline: pa.Table) -> int:
    """A number that only the plan decides."""
    digest = blake2b(digest_size=8)
    for name in ("shard", "objects", "size"):
        for value in outline[name].to_pylist():
            digest.update(f"{value}\0".encode())
    return int.from_bytes(digest.digest(), "big")


def _archive_sizes(is_loose: Flags, sizes: Numbers) -> Numbers | None:
    """The sizes of the archives of a plan, with 0 in the places of shards of loose files.

    An unknown size is the mean of the known ones. None if there are archives, and none is known.
    """
    known = sizes[~is_loose & (sizes > 0)]
    if not len(known):
        return np.zeros_like(sizes) if is_loose.all() else None
    return np.where(is_loose, 0, np.where(sizes > 0, sizes, round(known.mean())))


def _share_of_loose(loose_bytes: int, loose: int, archive_bytes: int | None) -> float:
    """The share of loose files among all images: by bytes, as images of archives are not known.

    It is a half if nothing is known of the bytes of either.
    """
    if not loose or archive_bytes == 0:
        return float(bool(loose))
    return loose_bytes / (loose_bytes + archive_bytes) if loose_bytes and archive_bytes else 0.5


def _even(total: int, count: int, random: np.random.Generator) -> Numbers:
    """`count` different numbers below `total`, ascending: a random one of each equal part."""
    if not count:
        return np.empty(0, np.int64)
    edges = np.arange(count + 1) * total // count
    return random.integers(edges[:-1], edges[1:])


def _members(shards: Shards, objects: Numbers, chosen: Numbers) -> Iterator[Member]:
    """The loose files with the numbers `chosen` among those of all shards.

    `objects` is the number of loose files of each shard.
    """
    stops = np.cumsum(objects)
    of_shard = np.searchsorted(stops, chosen, "right")
    for place, shard in _shards_at(shards, np.unique(of_shard)):
        for number in chosen[of_shard == place]:
            yield shard.members[int(number - stops[place] + objects[place])]


def _shards_at(shards: Shards, places: Numbers) -> Iterator[tuple[int, Shard]]:
    """The shards at ascending places of a plan."""
    start = 0
    for table in shards.tables():
        inside = places[(places >= start) & (places < start + len(table))]
        for place in inside.tolist():
            yield place, *shards_of_table(table.slice(place - start, 1))
        start += len(table)


def _access(shards: Shards) -> str | None:
    """How the stores of a plan are asked, which is the same for all of its shards."""
    return next(iter(shards)).access


def _archive_limits(weights: Numbers, images: int, random: np.random.Generator) -> dict[int, int]:
    """The places of archives to open, and how many images to read of each."""
    if not images or not weights.any():
        return {}
    count = min(images, MOST_ARCHIVES)
    stops = np.cumsum(weights)
    marks = (np.arange(count) + random.random(count)) * stops[-1] / count
    places, hits = np.unique(np.searchsorted(stops, marks, "right"), return_counts=True)
    each = -(-images // count)
    return dict(zip(places.tolist(), (hits * each).tolist(), strict=True))


def _archives(shards: Shards, limits: dict[int, int]) -> Iterator[Shard]:
    """The archives at the places `limits`, each with its number of images to read."""
    places: Any = np.array(sorted(limits), np.int64)
    for place, shard in _shards_at(shards, places):
        limit = limits[place] if shard.limit is None else min(shard.limit, limits[place])
        yield replace(shard, limit=limit)
