"""publish: staged blocks -> the tables that users query. They count once the run is committed.

Each output file holds whole shards, in order of shard and position, and is written by one Ray task;
the driver knows shards and counts, never rows.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.plan.remaining import Staged
from pipeline.schema import DETECTIONS, IMAGES
from pipeline.stages.staged import read_staged_block, remove_staged_block
from pipeline.storage.errors import DamagedFile, OutputError
from pipeline.storage.files import join, open_location, write_whole

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
    part_name: str  # of a file, with places for `table` and `number`
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
    places = staged.positions_of(pa.array(planned, pa.string()))
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


def images_per_file(score_threshold: float) -> int:
    """How many images one task may publish of a run that kept boxes from this score up."""
    low = score_threshold < LOW_SCORE
    return BOXES_PER_FILE // BOXES_PER_IMAGE if low else IMAGES_PER_FILE


def group_into_parts(
    planned: Sequence[str], staged: Staged, images_per_file: int = IMAGES_PER_FILE
) -> list[Part]:
    """Planned shards, sorted, in groups of about `images_per_file` images."""
    if not planned:
        return []
    names = sorted(planned)
    places = staged.positions_of(pa.array(names, pa.string()))
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
    """Write one file of each table: repeats dropped, sorted by shard and position.

    OutputError for a block that is damaged, which is removed.
    """
    blocks = []
    for name in part.files:
        table = _read_block_or_remove_it(target.staging, name)
        blocks.append(table.filter(pc.is_in(table["shard"], pa.array(part.shards, pa.string()))))
    rows = pa.concat_tables(blocks).sort_by(
        [("shard", "ascending"), ("index_in_shard", "ascending")]
    )
    rows = _drop_repeated_images(rows)
    tables = {
        "images": images_table(rows, target),
        "detections": detections_table(rows, target),
    }
    return [
        write_part(target.output, target.part_name.format(table=name, number=part.number), table)
        for name, table in tables.items()
    ]


def _read_block_or_remove_it(staging: str, name: str) -> pa.Table:
    """A staged block. OutputError for one that is damaged, which is removed."""
    try:
        return read_staged_block(staging, name)
    except DamagedFile as error:
        remove_staged_block(staging, name)
        raise OutputError(
            f"the staged block {name} was damaged, and is removed: nothing was published. Run the "
            "same command again: it computes its images anew, and keeps the others"
        ) from error


def _drop_repeated_images(rows: pa.Table) -> pa.Table:
    """Of neighbouring rows with the same shard and position, the first."""
    if len(rows) < 2:
        return rows
    shard, index = rows["shard"].combine_chunks(), rows["index_in_shard"].combine_chunks()
    again = pc.and_(pc.equal(shard[1:], shard[:-1]), pc.equal(index[1:], index[:-1]))
    return rows.filter(pa.concat_arrays([pa.array([True]), pc.invert(again)]))


def images_table(rows: pa.Table, target: PublishTarget) -> pa.Table:
    """DETECTED -> IMAGES."""
    flat, starts, lengths = _flatten_boxes(rows)
    best = pa.array(starts, mask=lengths == 0)  # boxes come best first
    columns = {
        "num_detections": pa.array(lengths, pa.int32()),
        "max_score": pc.struct_field(flat, "score").take(best),
        "model": pa.array([target.model] * len(rows), pa.string()),
        "model_fingerprint": pa.array([target.fingerprint] * len(rows), pa.string()),
        "run_id": pa.array([target.run_id] * len(rows), pa.string()),
    }
    arrays = [
        columns.get(name, rows[name] if name in rows.column_names else None)
        for name in IMAGES.names
    ]
    return pa.table(arrays, schema=IMAGES)


def _flatten_boxes(rows: pa.Table) -> tuple[pa.Array, Numbers, Numbers]:
    """All boxes (N,) of a DETECTED table, and where each image's begin and how many they are."""
    boxes = rows["boxes"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(boxes), 0).to_numpy().astype(np.int64)
    return pc.list_flatten(boxes), np.cumsum(lengths) - lengths, lengths


def detections_table(rows: pa.Table, target: PublishTarget) -> pa.Table:
    """DETECTED -> DETECTIONS: one row a box, by label and, best first, by score."""
    flat, starts, lengths = _flatten_boxes(rows)
    parent = pa.array(np.repeat(np.arange(len(rows)), lengths))
    fields = {field.name: pc.struct_field(flat, field.name) for field in flat.type}
    columns = {
        **fields,
        "image_id": rows["image_id"].take(parent),
        "shard": rows["shard"].take(parent),
        "detection": pa.array(np.arange(len(flat)) - np.repeat(starts, lengths), pa.int32()),
        "label": pa.array(target.labels, pa.string()).take(fields["label_id"]),
        "run_id": pa.array([target.run_id] * len(flat), pa.string()),
    }
    return sort_by_label(pa.table([columns[name] for name in DETECTIONS.names], schema=DETECTIONS))


def sort_by_label(detections: pa.Table) -> pa.Table:
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
