"""plan: what lies under INPUT, as shards. One listing; known objects are left out unopened."""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.urls import identity, mask
from pipeline.listing import FORMATS, Found, is_image, listing
from pipeline.retries import is_passing
from pipeline.schema import Member, Shard
from pipeline.storage import InputError, explained, open_location, open_object, uri

# Loose files travel in groups, so that a task reads for seconds, not for one file.
FILES_PER_SHARD = 256
BYTES_PER_SHARD = 64 << 20

_MEMBER = pa.struct([("uri", pa.string()), ("etag", pa.string()), ("size", pa.int64())])
PLAN = pa.schema(
    [
        ("shard", pa.string()),
        ("kind", pa.string()),
        ("members", pa.list_(_MEMBER)),
        ("limit", pa.int64()),
    ]
)


# What OUTPUT holds the newest labels of: the version, and whether a run over this INPUT made them.
KNOWN = pa.schema([("uri", pa.string()), ("etag", pa.string()), ("of_input", pa.bool_())])
# Objects compared with what is known at a time: each time Arrow hashes all that is known anew.
CHUNK = 1 << 17


@dataclass(frozen=True)
class Plan:
    """Shards to read, and what else lies under INPUT, in objects."""

    shards: list[Shard]
    ignored: int  # no images of any kind
    known: int  # labelled already
    changed: int  # labelled in another version
    gone: pa.Array  # their uris: labelled before from this INPUT, and not there any more


def plan(
    input_url: str,
    format: str = "auto",
    limit: int | None = None,
    known: pa.Table | None = None,
    output: str | None = None,
) -> Plan:
    """Shards of all objects under INPUT whose (`identity` of the uri, etag) is not `known`.

    `known` is a table of schema KNOWN, one row a uri; without an etag it is to be labelled anew.
    `limit` caps the images: loose files first, then archives, of which it counts the images. What
    lies under `output` is no input.

    InputError where INPUT is missing, forbidden or holds nothing to label.
    """
    if format not in FORMATS:
        raise InputError(f"--format {format}: choose one of {', '.join(FORMATS)}")
    compared = _Comparison(KNOWN.empty_table() if known is None else known)
    with explained("INPUT", input_url):
        objects = iter(listing(input_url, format, output))
        while chunk := list(islice(objects, CHUNK)):
            compared.add(chunk)
    if not compared.wanted:
        raise InputError(
            f"INPUT {mask(input_url)} holds nothing to label: no images, .tar shards or Parquet "
            f"files among {compared.ignored} files"
        )
    shards = _group(input_url, compared.new)
    if limit is not None:
        with explained("INPUT", input_url):
            shards = list(_limited(shards, limit))
    labelled = compared.wanted - len(compared.new)
    return Plan(shards, compared.ignored, labelled, compared.changed, compared.gone())


class _Comparison:
    """A listing, as it comes, against what is known."""

    def __init__(self, known: pa.Table):
        self.known = known.combine_chunks()
        self.new: list[Found] = []
        self.wanted = self.ignored = self.changed = 0
        self._seen = np.zeros(len(known), bool)

    def add(self, found: Sequence[Found]) -> None:
        """The next objects of the listing."""
        rows = [(member, kind) for member, kind in found if kind]
        self.wanted += len(rows)
        self.ignored += len(found) - len(rows)
        uris = pa.array([identity(member.uri) for member, _ in rows], pa.string())
        etags = pa.array([member.etag for member, _ in rows], pa.string())
        places = pc.index_in(uris, self.known["uri"])
        labelled = self.known["etag"].take(places)
        same = pc.fill_null(pc.equal(etags, labelled), False)
        self._seen[pc.drop_null(places).to_numpy()] = True
        self.changed += len(rows) - labelled.null_count - (pc.sum(same).as_py() or 0)
        new = pc.indices_nonzero(pc.invert(same)).to_pylist()
        self.new += [rows[place] for place in new]

    def gone(self) -> pa.Array:
        """Uris of this INPUT that are known and did not come."""
        unseen = pc.and_(pa.array(~self._seen), self.known["of_input"])
        return self.known["uri"].filter(unseen).combine_chunks()


def _group(input_url: str, members: Sequence[Found]) -> list[Shard]:
    """Tars and Parquet files alone, loose files in groups."""
    fs, root = open_location(input_url, "INPUT")
    base = uri(fs, root).rstrip("/")
    shards = [Shard(identity(m.uri), kind, (m,)) for m, kind in members if kind and kind != "files"]
    group: list[Member] = []
    size = number = 0
    for member in [m for m, kind in members if kind == "files"]:
        if group and (len(group) == FILES_PER_SHARD or size + member.size > BYTES_PER_SHARD):
            shards.append(Shard(f"{base}#files-{number:05d}", "files", tuple(group)))
            group, size, number = [], 0, number + 1
        group.append(member)
        size += max(member.size, 0)
    if group:
        shards.append(Shard(f"{base}#files-{number:05d}", "files", tuple(group)))
    return shards


def _limited(shards: list[Shard], limit: int) -> Iterator[Shard]:
    """The first `limit` images: loose files, then archives, the last of them bounded if need be."""
    for shard in sorted(shards, key=lambda shard: shard.kind != "files"):
        if limit <= 0:
            return
        if shard.kind == "files":
            yield replace(shard, members=shard.members[:limit])
            limit -= len(shard.members)
        else:
            count = _count(shard, limit + 1)
            yield replace(shard, limit=limit if count > limit else None)
            limit -= count


def _count(shard: Shard, most: int) -> int:
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
        if is_passing(error):
            raise
        count += 1
    return max(count, 1)


def to_table(shards: Sequence[Shard]) -> pa.Table:
    """Shards as a table of schema PLAN, one row each."""
    rows = [
        {
            "shard": shard.shard,
            "kind": shard.kind,
            "members": [vars(member) for member in shard.members],
            "limit": shard.limit,
        }
        for shard in shards
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)


def without_secrets(shards: Sequence[Shard]) -> list[Shard]:
    """The shards under the names that tables give their objects: to know, not to open them."""
    return [
        replace(shard, members=tuple(replace(m, uri=identity(m.uri)) for m in shard.members))
        for shard in shards
    ]


def from_table(table: pa.Table) -> list[Shard]:
    """The inverse of `to_table`."""
    return [
        Shard(row["shard"], row["kind"], tuple(Member(**m) for m in row["members"]), row["limit"])
        for row in table.to_pylist()
    ]
