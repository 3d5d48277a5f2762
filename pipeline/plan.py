"""plan: what lies under INPUT, as shards. One listing; known objects are left out unopened."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.schema import Member, Shard
from pipeline.storage import InputError, explained, join, open_location, uri

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .avif "
    ".jp2 .j2k .ico .tga".split()
)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LIST_COLUMNS = ("url", "uri")
FORMATS = ("auto", "images", "tar", "parquet", "urls")
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


@dataclass(frozen=True)
class Plan:
    """Shards to read, and how many files under INPUT are no images of any kind."""

    shards: list[Shard]
    ignored: int
    known: int  # objects that OUTPUT holds already


def plan(
    input_url: str,
    format: str = "auto",
    limit: int | None = None,
    known: Collection[tuple[str, str]] = frozenset(),
) -> Plan:
    """Shards of all objects under INPUT whose (uri, etag) is not `known`.

    `limit` caps the images: exactly for loose files; a tar or Parquet shard is read up to what is
    left of it, and counts as that many.

    InputError where INPUT is missing, forbidden or holds nothing to label.
    """
    if format not in FORMATS:
        raise InputError(f"--format {format}: choose one of {', '.join(FORMATS)}")
    with explained("INPUT", input_url):
        found = list(_listing(input_url, format))
    kinds = [(member, kind_of(member.uri, format)) for member in found]
    wanted = [(member, kind) for member, kind in kinds if kind]
    if not wanted:
        raise InputError(
            f"INPUT {input_url} holds nothing to label: no images, .tar shards or Parquet files "
            f"among {len(found)} files"
        )
    new = [(m, kind) for m, kind in wanted if (m.uri, m.etag) not in known]
    shards = _group(input_url, new)
    if limit is not None:
        shards = list(_limited(shards, limit))
    return Plan(shards, len(found) - len(wanted), len(wanted) - len(new))


def kind_of(name: str, format: str) -> str | None:
    """The kind of shard an object is ("files", "tar", "parquet"), None for what is not read.

    A file without an extension counts as an image: if it is none, its row says so.
    """
    if format != "auto":
        return {"images": "files", "urls": "files"}.get(format, format)
    lower = name.rsplit("/", 1)[-1].lower()
    if lower.endswith(TAR_SUFFIXES):
        return "tar"
    if lower.endswith(".parquet"):
        return "parquet"
    suffix = PurePosixPath(lower).suffix
    return "files" if suffix in IMAGE_SUFFIXES or not suffix else None


def _listing(input_url: str, format: str) -> Iterator[Member]:
    """Every visible object under INPUT, sorted by path; what a list of URLs names, in its order."""
    fs, root = open_location(input_url, "INPUT")
    info = fs.info(root)
    if info["type"] == "file":
        if format == "urls" or (format == "auto" and _is_list(fs, root)):
            yield from _listed(fs, root)
        else:
            yield _member(fs, root, info)
        return
    entries = fs.find(root, detail=True)
    for path in sorted(entries):
        below = path[len(root) :].strip("/").split("/")
        if entries[path]["type"] == "file" and not any(
            part.startswith(("_", ".")) for part in below
        ):
            if entries[path].get("size") == 0 and path.endswith("/"):
                continue  # an object store's marker of an empty folder
            yield _member(fs, path, entries[path])


def _member(fs: AbstractFileSystem, path: str, info: dict[str, Any]) -> Member:
    size = info.get("size")
    etag = info.get("ETag") or info.get("etag")
    if etag is None and "mtime" in info:
        etag = f"{int(info['mtime'] * 1e9)}-{size}"
    return Member(uri(fs, path), str(etag or size).strip('"'), -1 if size is None else int(size))


def _is_list(fs: AbstractFileSystem, path: str) -> bool:
    """Whether one file is a list of URLs: text, or Parquet with a URL column and no bytes."""
    if path.endswith(".txt"):
        return True
    if not path.endswith(".parquet"):
        return False
    with fs.open(path, "rb") as file:
        schema = pq.read_schema(file)
    binary = any(pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type) for f in schema)
    nested = any(pa.types.is_struct(f.type) for f in schema)
    return any(name in schema.names for name in LIST_COLUMNS) and not binary and not nested


def _listed(fs: AbstractFileSystem, path: str) -> Iterator[Member]:
    """Objects named by a list, each once; relative ones lie beside it."""
    if path.endswith(".parquet"):
        with fs.open(path, "rb") as file:
            table = pq.read_table(file)
        column = next((name for name in LIST_COLUMNS if name in table.column_names), None)
        if column is None:
            raise InputError(f"the list {path} has no column named {' or '.join(LIST_COLUMNS)}")
        names = [name for name in table[column].to_pylist() if name]
    else:
        lines = fs.cat_file(path).decode("utf-8", "replace").splitlines()
        names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    folder = uri(fs, path).rsplit("/", 1)[0]
    for name in dict.fromkeys(names):
        url = name if "://" in name or name.startswith("/") else join(folder, name)
        there, place = open_location(url, "listed image")
        try:
            info = there.info(place)
        except FileNotFoundError:
            info = {}  # planned all the same: its row will say that it is missing
        yield _member(there, place, info)


def _group(input_url: str, members: Sequence[tuple[Member, str]]) -> list[Shard]:
    """Tars and Parquet files alone, loose files in groups."""
    fs, root = open_location(input_url, "INPUT")
    base = uri(fs, root).rstrip("/")
    shards = [Shard(m.uri, kind, (m,)) for m, kind in members if kind != "files"]
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
    """Loose files first, up to `limit`; then one archive at a time, bounded by what is left."""
    for shard in sorted(shards, key=lambda shard: shard.kind != "files"):
        if limit <= 0:
            return
        if shard.kind == "files":
            yield Shard(shard.shard, shard.kind, shard.members[:limit])
            limit -= len(shard.members)
        else:
            yield Shard(shard.shard, shard.kind, shard.members, limit)
            return


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


def from_table(table: pa.Table) -> list[Shard]:
    """The inverse of `to_table`."""
    return [
        Shard(row["shard"], row["kind"], tuple(Member(**m) for m in row["members"]), row["limit"])
        for row in table.to_pylist()
    ]
