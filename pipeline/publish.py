"""publish: staged blocks -> the tables that users query, then the manifest: only then they count.

Each output file holds whole shards, in order of shard and position, and is written by one Ray task;
the driver knows shards and counts, never rows.
"""

import hashlib
import io
import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.schema import DETECTED, DETECTIONS, IMAGES
from pipeline.stage import Staged
from pipeline.storage import (
    explained,
    find,
    join,
    open_location,
    open_object,
    read_object,
    remove_tree,
    write_whole,
)

# Images of one output file: at a few hundred bytes a row, tens of MB, which engines read well.
IMAGES_PER_FILE = 100_000
# A task takes some 300 bytes a box while it writes them (2 million: 550 MiB, 2026-11-25).
BOXES_PER_FILE = 1_000_000
BOXES_PER_IMAGE = 100  # at most, and about so many where low scores are kept
LOW_SCORE = 0.1
# Small groups, of which statistics let engines leave most unread: of three million synthetic boxes
# `label = 'x' AND score > 0.8` read 1.3 % of the bytes (all columns: 7 %) where groups of a million
# rows, in the order of their images, had 22 % (100 %) read, 2026-11-25.
ROWS_PER_GROUP = 1 << 15
Numbers = np.ndarray[Any, np.dtype[np.int64]]
READ_AT_ONCE = 16  # manifests fetched together: latency limits them


class ReconcileError(RuntimeError):
    """Images that were planned have no row: nothing is published."""


@dataclass(frozen=True)
class Part:
    """One pair of output files to write: which staged files hold its shards."""

    number: int
    shards: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class PublishTarget:
    """Where a run's tables go, and what its rows say about the model."""

    output: str
    run_id: str
    staging: str
    model: str
    fingerprint: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class PartFile:
    """A file that counts, as the manifest lists it."""

    path: str  # below OUTPUT
    rows: int
    bytes: int
    sha256: str


def reconcile(planned: Sequence[str], staged: Staged) -> None:
    """ReconcileError unless every planned shard is staged to its last image."""
    places = staged.places(pa.array(planned, pa.string()))
    found, sizes = (
        np.append(column, none)[places] for column, none in ((staged.found, 0), (staged.sizes, -1))
    )
    wrong = np.flatnonzero(found != sizes)
    if len(wrong):
        said = [
            f"{planned[i]}: {found[i]} of {'an unknown number' if sizes[i] < 0 else sizes[i]}"
            for i in wrong[:3]
        ]
        more = f" and {len(wrong) - 3} more shards" if len(wrong) > 3 else ""
        raise ReconcileError(
            f"images are missing, so nothing was published ({'; '.join(said)}{more}). "
            "Run the same command again: it labels those that are missing."
        )


def fitting_images(score_threshold: float) -> int:
    """How many images one task may publish of a run that kept boxes from this score up."""
    low = score_threshold < LOW_SCORE
    return BOXES_PER_FILE // BOXES_PER_IMAGE if low else IMAGES_PER_FILE


def parts(
    planned: Sequence[str], staged: Staged, images_per_file: int = IMAGES_PER_FILE
) -> list[Part]:
    """Planned shards, sorted, in groups of about `images_per_file` images."""
    if not planned:
        return []
    names = sorted(planned)
    places = staged.places(pa.array(names, pa.string()))
    starts, count = [0], 0
    for row, images in enumerate(staged.found[places].tolist()):
        if count and count + images > images_per_file:
            starts.append(row)
            count = 0
        count += images
    found: list[Part] = []
    for first, stop in zip(starts, [*starts[1:], len(names)], strict=True):
        files = np.unique(staged.file[staged.ranges(places[first], places[stop - 1])])
        files_of_part = staged.files.take(pa.array(files)).to_pylist()
        found.append(Part(len(found), tuple(names[first:stop]), tuple(files_of_part)))
    return found


def publish_part(part: Part, target: PublishTarget) -> list[PartFile]:
    """Write one file of each table: repeats dropped, sorted by shard and position."""
    fs, staging = open_location(target.staging, "staging")
    tables = []
    for name in part.files:
        with open_object(fs, f"{staging}/{name}") as file:
            table = pq.read_table(file, schema=DETECTED)
        tables.append(table.filter(pc.is_in(table["shard"], pa.array(part.shards, pa.string()))))
    rows = pa.concat_tables(tables).sort_by(
        [("shard", "ascending"), ("index_in_shard", "ascending")]
    )
    rows = _first_of_each(rows)
    name = f"run={target.run_id}/part-{part.number:05d}.parquet"
    return [
        write_part(target.output, f"images/{name}", images_table(rows, target)),
        write_part(target.output, f"detections/{name}", detections_table(rows, target.labels)),
    ]


def _first_of_each(rows: pa.Table) -> pa.Table:
    """Of neighbouring rows with the same shard and position, the first."""
    if len(rows) < 2:
        return rows
    shard, index = rows["shard"].combine_chunks(), rows["index_in_shard"].combine_chunks()
    again = pc.and_(pc.equal(shard[1:], shard[:-1]), pc.equal(index[1:], index[:-1]))
    return rows.filter(pa.concat_arrays([pa.array([True]), pc.invert(again)]))


def images_table(rows: pa.Table, target: PublishTarget) -> pa.Table:
    """DETECTED -> IMAGES."""
    flat, starts, lengths = _boxes(rows)
    best = pa.array(starts, mask=lengths == 0)  # boxes come best first
    columns = {
        "num_detections": pa.array(lengths, pa.int32()),
        "max_score": pc.struct_field(flat, "score").take(best),
        "model": pa.array([target.model] * len(rows), pa.string()),
        "model_fingerprint": pa.array([target.fingerprint] * len(rows), pa.string()),
    }
    arrays = [
        columns.get(name, rows[name] if name in rows.column_names else None)
        for name in IMAGES.names
    ]
    return pa.table(arrays, schema=IMAGES)


def _boxes(rows: pa.Table) -> tuple[pa.Array, Numbers, Numbers]:
    """All boxes (N,) of a DETECTED table, and where each image's begin and how many they are."""
    boxes = rows["boxes"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(boxes), 0).to_numpy().astype(np.int64)
    return pc.list_flatten(boxes), np.cumsum(lengths) - lengths, lengths


def detections_table(rows: pa.Table, labels: tuple[str, ...]) -> pa.Table:
    """DETECTED -> DETECTIONS: one row a box, by label and, best first, by score."""
    flat, starts, lengths = _boxes(rows)
    parent = pa.array(np.repeat(np.arange(len(rows)), lengths))
    fields = {field.name: pc.struct_field(flat, field.name) for field in flat.type}
    columns = {
        **fields,
        "image_id": rows["image_id"].take(parent),
        "shard": rows["shard"].take(parent),
        "detection": pa.array(np.arange(len(flat)) - np.repeat(starts, lengths), pa.int32()),
        "label": pa.array(labels, pa.string()).take(fields["label_id"]),
    }
    return by_label(pa.table([columns[name] for name in DETECTIONS.names], schema=DETECTIONS))


def by_label(detections: pa.Table) -> pa.Table:
    """Sorted as the files are; images keep their order among equals."""
    place = pa.array(np.arange(len(detections)))
    order = pc.sort_indices(
        detections.select(["label", "score"]).append_column("place", place),
        [("label", "ascending"), ("score", "descending"), ("place", "ascending")],
    )
    return detections.take(order)


def write_part(output: str, name: str, table: pa.Table) -> PartFile:
    """Put a table of the schema IMAGES or DETECTIONS at `name` below OUTPUT."""
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        row_group_size=ROWS_PER_GROUP,
        # Floats hardly repeat: with dictionaries files are a third larger.
        use_dictionary=[f.name for f in table.schema if not pa.types.is_floating(f.type)],
    )
    data = buffer.getvalue()
    fs, path = open_location(join(output, name), "OUTPUT")
    write_whole(fs, path, data)
    return PartFile(name, len(table), len(data), hashlib.sha256(data).hexdigest())


def manifest_of(
    target: PublishTarget,
    source: str,
    files: list[PartFile],
    counts: dict[str, int],
    replaces: Sequence[str] = (),
    compacts: bool = False,
) -> dict[str, Any]:
    """What a run over INPUT `source` wrote; runs that it `replaces` are to count no more.

    `compacts`: their labels live on in this one.
    """
    return {
        "run_id": target.run_id,
        "input": source,
        "model": target.model,
        "model_fingerprint": target.fingerprint,
        "labels": list(target.labels),  # by label_id
        "images": counts,  # by status
        "files": [asdict(file) for file in files],
        "replaces": list(replaces),
        "compacts": compacts,
    }


def write_manifest(output: str, document: dict[str, Any]) -> None:
    """The last write of a run: from now on the files of its manifest count."""
    place = join(output, "_runs", document["run_id"], "manifest.json")
    fs, path = open_location(place, "OUTPUT")
    write_whole(fs, path, json.dumps(document, indent=1).encode())


def manifests(output: str) -> list[dict[str, Any]]:
    """Of all runs that were ever published and not deleted, oldest first."""
    fs, path = open_location(join(output, "_runs"), "OUTPUT")
    with explained("OUTPUT", output), ThreadPoolExecutor(READ_AT_ONCE) as pool:
        found = [name for name in find(fs, path) if name.endswith("/manifest.json")]
        texts = pool.map(partial(_manifest, fs), found)
        return [json.loads(text) for text in texts if text is not None]


def _manifest(fs: AbstractFileSystem, name: str) -> bytes | None:
    """A manifest; None where its run was deleted since the listing."""
    try:
        return read_object(fs, name)
    except FileNotFoundError:
        return None


def committed_runs(output: str) -> list[dict[str, Any]]:
    """Manifests of the runs that count, oldest first."""
    runs = manifests(output)
    replaced = {run_id for run in runs for run_id in run["replaces"]}
    return [run for run in runs if run["run_id"] not in replaced]


def replaced_by(run: dict[str, Any], runs: list[dict[str, Any]]) -> list[str]:
    """Runs whose place a run took, itself or through others: those before that were first."""
    by_id = {one["run_id"]: one for one in runs}
    found: list[str] = []
    open_runs = list(run["replaces"])
    while open_runs:
        run_id = open_runs.pop()
        if run_id in by_id:
            found.append(run_id)
            open_runs += by_id[run_id]["replaces"]
    return found[::-1]


def labelling_runs(output: str) -> list[dict[str, Any]]:
    """Manifests of the runs whose labels OUTPUT holds, also where `compact` merged their tables."""
    runs = manifests(output)
    gone = {i for run in runs if not run.get("compacts") for i in replaced_by(run, runs)}
    return [run for run in runs if run["run_id"] not in gone and not run.get("compacts")]


def remove_tables(output: str, run_ids: Sequence[str]) -> None:
    """Delete the tables of runs that were replaced, which plain globs would still find."""
    for run_id in run_ids:
        for table in ("images", "detections"):
            fs, path = open_location(join(output, table, f"run={run_id}"), "OUTPUT")
            remove_tree(fs, path)


def remove_remains(output: str, unfinished: Collection[str]) -> None:
    """Delete tables of runs that count no more, or were killed and left nothing to take up."""
    kept = {run["run_id"] for run in committed_runs(output)} | set(unfinished)
    for table in ("images", "detections"):
        fs, path = open_location(join(output, table), "OUTPUT")
        names = (name[len(path) :].strip("/").split("/")[0] for name in find(fs, path))
        remains = {name.removeprefix("run=") for name in names if name.startswith("run=")} - kept
        remove_tables(output, sorted(remains))
