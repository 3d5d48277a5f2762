"""plan: what lies under INPUT, as shards. One listing; known objects are left out unopened.

All of it is looked at as the listing comes, and nothing is kept but the shards' file.
"""

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.plan.digests import NOTHING_KNOWN, Known, digests, find_names, find_positions
from pipeline.plan.listing import FORMATS, ListedObject, is_image, list_objects
from pipeline.plan.shards import Shards, tables_of_shards, write_shards
from pipeline.schema import Member, Shard
from pipeline.storage.files import InputError, explain_errors, open_location, open_object, uri
from pipeline.storage.retries import is_transient
from pipeline.storage.urls import identity, mask

# Loose files travel in groups, so that a task reads for seconds, not for one file.
FILES_PER_SHARD = 256
BYTES_PER_SHARD = 64 << 20
CHUNK = 1 << 14  # objects compared at a time with what is known


@dataclass(frozen=True)
class Plan:
    """Shards to read, and what else lies under INPUT, in objects."""

    shards: Shards
    ignored: int  # no images of any kind
    known: int  # labelled already
    changed: int  # labelled in another version
    gone: pa.Array  # their uris: labelled before from this INPUT, and not there any more


def plan_shards(
    input_url: str,
    format: str = "auto",
    limit: int | None = None,
    known: Known = NOTHING_KNOWN,
    output: str | None = None,
) -> Plan:
    """Shards of all objects under INPUT whose (`identity` of the uri, etag) is not `known`.

    `limit` caps the images: loose files first, then archives, of which it counts the images. What
    lies under `output` is no input.

    InputError where INPUT is missing, forbidden or holds nothing to label.
    """
    if format not in FORMATS:
        raise InputError(f"--format {format}: choose one of {', '.join(FORMATS)}")
    compared = _Comparison(known)
    fs, root = open_location(input_url, "INPUT")
    new = compared.select_new(_list_in_chunks(input_url, format, output))
    found = _group_into_shards(uri(fs, root).rstrip("/"), new)
    shards = write_shards(
        tables_of_shards(found if limit is None else _limit_images(found, limit, input_url))
    )
    if not compared.wanted:
        raise InputError(
            f"INPUT {mask(input_url)} holds nothing to label: no images, .tar shards or Parquet "
            f"files among {compared.ignored} files"
        )
    labelled = compared.wanted - compared.planned
    return Plan(shards, compared.ignored, labelled, compared.changed, compared.gone_uris())


def _list_in_chunks(
    input_url: str, format: str, output: str | None
) -> Iterator[list[ListedObject]]:
    """The listing, some objects at a time."""
    with explain_errors("INPUT", input_url):
        objects = list_objects(input_url, format, output)
        while chunk := list(islice(objects, CHUNK)):
            yield chunk


class _Comparison:
    """A listing, as it comes, against what is known."""

    def __init__(self, known: Known):
        self.known = known
        self.wanted = self.planned = self.ignored = self.changed = 0
        self._seen = np.zeros(known.uris.shape[1], bool)

    def select_new(self, listed: Iterable[Sequence[ListedObject]]) -> Iterator[tuple[Member, str]]:
        """What is to be planned."""
        for found in listed:
            rows = [(member, kind) for member, kind in found if kind]
            self.wanted += len(rows)
            self.ignored += len(found) - len(rows)
            if len(self._seen):
                rows = self._leave_out_known(rows)
            self.planned += len(rows)
            yield from rows

    def _leave_out_known(self, rows: list[tuple[Member, str]]) -> list[tuple[Member, str]]:
        place = find_positions(digests(identity(member.uri) for member, _ in rows), self.known.uris)
        there = place >= 0
        self._seen[place[there]] = True
        etags = digests(member.etag for member, _ in rows)
        labelled = there & self.known.labelled[place]
        same = labelled & (etags == self.known.etags[:, place]).all(axis=0)
        self.changed += int(labelled.sum() - same.sum())
        return [rows[row] for row in np.flatnonzero(~same)]

    def gone_uris(self) -> pa.Array:
        """Uris of this INPUT that are known and did not come."""
        return find_names(self.known.uris[:, ~self._seen & self.known.of_input], self.known.names)


def _group_into_shards(base: str, found: Iterable[tuple[Member, str]]) -> Iterator[Shard]:
    """Tars and Parquet files alone, loose files in groups."""
    group: list[Member] = []
    size = number = 0
    for member, kind in found:
        if kind != "files":
            yield Shard(identity(member.uri), kind, (member,))
            continue
        if group and (len(group) == FILES_PER_SHARD or size + member.size > BYTES_PER_SHARD):
            yield Shard(f"{base}#files-{number:05d}", "files", tuple(group))
            group, size, number = [], 0, number + 1
        group.append(member)
        size += max(member.size, 0)
    if group:
        yield Shard(f"{base}#files-{number:05d}", "files", tuple(group))


def _limit_images(shards: Iterable[Shard], limit: int, input_url: str) -> Iterator[Shard]:
    """The first `limit` images: loose files, then archives, the last of them bounded if need be.

    The listing behind `shards` is gone through to its end: it tells what is known and gone.
    """
    archives: list[Shard] = []
    for shard in shards:
        if shard.kind != "files":
            if len(archives) < limit:
                archives.append(shard)
        elif limit > 0:
            yield replace(shard, members=shard.members[:limit])
            limit -= len(shard.members)
    for shard in archives:
        if limit <= 0:
            return
        with explain_errors("INPUT", input_url):
            count = _count_images(shard, limit + 1)
        yield replace(shard, limit=limit if count > limit else None)
        limit -= count


def _count_images(shard: Shard, most: int) -> int:
    """Images of a tar or Parquet file, at most `most`; at least 1, as a broken one is a row."""
    fs, path = open_location(shard.members[0].uri, "shard")
    count = 0
    try:
        with open_object(fs, path) as file:
            if shard.kind == "parquet":
                count = min(pq.read_metadata(file).num_rows, most)
            else:
                with tarfile.open(fileobj=file) as archive:
                    for entry in archive:
                        count += entry.isfile() and is_image(entry.name)
                        if count == most:
                            break
    except Exception as error:  # broken in whatever way: its row will say how
        if is_transient(error):
            raise
        count += 1
    return max(count, 1)
