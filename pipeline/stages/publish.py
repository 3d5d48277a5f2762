"""publish: staged blocks -> the tables that users query. They are valid once the run is committed.

Each output file holds whole shards, in the order of shard and position. One Ray task writes it. The
driver holds shards and counts, never rows.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.carry.columns import CARRIED, NOT_CARRIED, carry_of_rows
from pipeline.plan.remaining import Staged
from pipeline.schema import DETECTIONS, IMAGES, images_schema
from pipeline.stages.box_overlaps import NearDuplicates, count_near_duplicates
from pipeline.stages.staged import read_staged_block, remove_staged_block
from pipeline.storage.errors import DamagedFile, OutputError
from pipeline.storage.files import join, open_location, write_whole

# Images per output file. At a few hundred bytes per row a file has tens of MB, which engines read
# well.
IMAGES_PER_FILE = 100_000
# A task needs about 300 bytes per box while it writes (2 million boxes: 550 MiB, 2026-11-25).
BOXES_PER_FILE = 1_000_000
# Row groups are small, so that engines can skip most of them by their statistics. For three million
# synthetic boxes `label = 'x' AND score > 0.8` read 1.3 % of the bytes (all columns: 7 %). With row
# groups of a million rows in the order of images it read 22 % (100 %), 2026-11-25.
ROWS_PER_GROUP = 1 << 15
Numbers = np.ndarray[Any, np.dtype[np.int64]]


class ReconcileError(RuntimeError):
    """Planned images have no row, so nothing is published."""


@dataclass(frozen=True)
class Part:
    """One pair of output files to write, with its shards and the staged files that hold them."""

    number: int
    shards: tuple[str, ...]  # names of the shards
    files: tuple[str, ...]  # names of the staged files


@dataclass(frozen=True)
class PublishTarget:
    """The destination of a run's tables, and the values of the columns about run and model."""

    output: str  # URL
    run_id: str
    part_name: str  # template of a file's path below OUTPUT, with fields `table` and `number`
    staging: str  # URL
    model: str
    fingerprint: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class PartFile:
    """A published file, as the manifest lists it."""

    path: str  # relative to OUTPUT
    rows: int
    bytes: int
    sha256: str
    # Pairs of boxes of one image that overlap by more than NEAR, in a file of detections: of boxes
    # of one class, and of all boxes.
    near_duplicates_same_class: int = 0
    near_duplicates_any_class: int = 0
    # Of `images`: the values that could not be carried along (carry/columns.py). It is in the
    # report, and not in the manifest.
    not_carried: int = 0


def reconcile(planned: Sequence[str], staged: Staged) -> None:
    """Raise ReconcileError unless all images of every planned shard are staged."""
    places = staged.positions_of(pa.array(planned, pa.string()))
    found, sizes = (
        np.append(column, none)[places] for column, none in ((staged.found, 0), (staged.sizes, -1))
    )
    wrong = np.flatnonzero(found != sizes)
    if len(wrong):
        examples = [
            f"{planned[i]}: {found[i]} of {'an unknown number' if sizes[i] < 0 else sizes[i]}"
            for i in wrong[:3]
        ]
        more = f" and {len(wrong) - 3} more shards" if len(wrong) > 3 else ""
        raise ReconcileError(
            f"images are missing, so nothing was published ({'; '.join(examples)}{more}). "
            "Run the same command again: it labels those that are missing."
        )


def group_into_parts(
    planned: Sequence[str],
    staged: Staged,
    images_per_file: int = IMAGES_PER_FILE,
    boxes_per_file: int = BOXES_PER_FILE,
) -> list[Part]:
    """Sort the planned shards and group them into parts of so many images and boxes at most.

    A shard that has more of them alone is a part of its own: shards are not split.
    """
    if not planned:
        return []
    names = sorted(planned)
    places = staged.positions_of(pa.array(names, pa.string()))
    starts, images, boxes = [0], 0, 0
    sizes = zip(staged.found[places].tolist(), staged.boxes[places].tolist(), strict=True)
    for row, (more_images, more_boxes) in enumerate(sizes):
        images += more_images
        boxes += more_boxes
        if row and (images > images_per_file or boxes > boxes_per_file):
            starts.append(row)
            images, boxes = more_images, more_boxes
    found: list[Part] = []
    for first, stop in zip(starts, [*starts[1:], len(names)], strict=True):
        files = np.unique(staged.file[staged.ranges(places[first], places[stop - 1])])
        files_of_part = staged.files.take(pa.array(files)).to_pylist()
        found.append(Part(len(found), tuple(names[first:stop]), tuple(files_of_part)))
    return found


def publish_part(part: Part, target: PublishTarget) -> list[PartFile]:
    """Write one file of each table. Repeated images are dropped; rows are sorted.

    The images table is sorted by shard and position, the detections table by label and score.
    Raises OutputError for a damaged block, after removing it.
    """
    rows = _read_part(part, target)
    near = _near_duplicates(rows)
    name = partial(target.part_name.format, number=part.number)
    images = write_part(target.output, name(table="images"), images_table(rows, target))
    lost = pc.sum(rows[NOT_CARRIED]).as_py() if NOT_CARRIED in rows.column_names else 0
    table = detections_table(rows, target)
    del rows  # a million boxes take 100 MB in each form
    detections = write_part(target.output, name(table="detections"), table)
    return [
        replace(images, not_carried=lost or 0),
        replace(
            detections,
            near_duplicates_same_class=near.same_class,
            near_duplicates_any_class=near.any_class,
        ),
    ]


def _read_part(part: Part, target: PublishTarget) -> pa.Table:
    """The DETECTED rows of a part, sorted and numbered, without repeated images."""
    blocks = []
    for name in part.files:
        table = _read_block_or_remove_it(target.staging, name)
        blocks.append(table.filter(pc.is_in(table["shard"], pa.array(part.shards, pa.string()))))
    rows = pa.concat_tables(blocks).sort_by(
        [("shard", "ascending"), ("index_in_shard", "ascending")]
    )
    return _number_images(_drop_repeated_images(rows))


def _near_duplicates(rows: pa.Table) -> NearDuplicates:
    """The near-duplicates of a DETECTED table. A million boxes take 0.6 s of a CPU (2026-11-28)."""
    flat, _, lengths = _flatten_boxes(rows)
    labels, *corners = (
        pc.struct_field(flat, name).to_numpy(zero_copy_only=False)
        for name in ("label_id", "x_min", "y_min", "x_max", "y_max")
    )
    return count_near_duplicates(lengths, labels, np.stack(corners, axis=1))


def _read_block_or_remove_it(staging: str, name: str) -> pa.Table:
    """The rows of a staged block. Raises OutputError for a damaged block, after removing it."""
    try:
        return read_staged_block(staging, name)
    except DamagedFile as error:
        remove_staged_block(staging, name)
        raise OutputError(
            f"the staged block {name} was damaged, and is removed: nothing was published. Run the "
            "same command again: it computes its images anew, and keeps the others"
        ) from error


def _drop_repeated_images(rows: pa.Table) -> pa.Table:
    """Keep the first of neighbouring rows with the same shard and position."""
    if len(rows) < 2:
        return rows
    shard, index = rows["shard"].combine_chunks(), rows["index_in_shard"].combine_chunks()
    repeats = pc.and_(pc.equal(shard[1:], shard[:-1]), pc.equal(index[1:], index[:-1]))
    return rows.filter(pa.concat_arrays([pa.array([True]), pc.invert(repeats)]))


def _number_images(rows: pa.Table) -> pa.Table:
    """Number the images of each shard from 0 on, as its members in the published plan.

    Rows are sorted by shard and position. Only the shards of loose files of a run that ended before
    it had labelled all of them have gaps.
    """
    if not len(rows):
        return rows
    shard = rows["shard"].combine_chunks()
    first = np.append(True, pc.not_equal(shard[1:], shard[:-1]).to_numpy(zero_copy_only=False))
    place = np.arange(len(rows))
    numbers = place - np.maximum.accumulate(np.where(first, place, 0))
    column = rows.column_names.index("index_in_shard")
    return rows.set_column(column, rows.schema.field(column), pa.array(numbers, pa.int64()))


def images_table(rows: pa.Table, target: PublishTarget) -> pa.Table:
    """Convert a DETECTED table to an IMAGES table, with one row per image.

    What the rows carry along becomes columns behind those of IMAGES.
    """
    flat, starts, lengths = _flatten_boxes(rows)
    best = pa.array(starts, mask=lengths == 0)  # the first box of an image has the highest score
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
    carry = carry_of_rows(rows.schema)
    if carry:
        arrays += rows[CARRIED].combine_chunks().flatten()
    return pa.table(arrays, schema=images_schema(carry))


def _flatten_boxes(rows: pa.Table) -> tuple[pa.Array, Numbers, Numbers]:
    """All boxes (N,) of a DETECTED table, and the start and the number of boxes of each image."""
    boxes = rows["boxes"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(boxes), 0).to_numpy().astype(np.int64)
    return pc.list_flatten(boxes), np.cumsum(lengths) - lengths, lengths


def detections_table(rows: pa.Table, target: PublishTarget) -> pa.Table:
    """Convert a DETECTED table to a DETECTIONS table, with one row per box.

    Rows are sorted by label, then by score from high to low.
    """
    flat, starts, lengths = _flatten_boxes(rows)
    parent = pa.array(np.repeat(np.arange(len(rows)), lengths))
    fields = {field.name: pc.struct_field(flat, field.name) for field in flat.type}
    columns = {
        **fields,
        "image_id": rows["image_id"].take(parent),
        "shard": rows["shard"].take(parent),
        "detection": pa.array(np.arange(len(flat)) - np.repeat(starts, lengths), pa.int32()),
        "label": pa.array(target.labels, pa.string()).take(fields["label_id"]),
        "run_id": pa.repeat(pa.scalar(target.run_id, pa.string()), len(flat)),
    }
    return sort_by_label(pa.table([columns[name] for name in DETECTIONS.names], schema=DETECTIONS))


def sort_by_label(detections: pa.Table) -> pa.Table:
    """Sort detections by label, then by score from high to low. The sort is stable."""
    place = pa.array(np.arange(len(detections)))
    order = pc.sort_indices(
        detections.select(["label", "score"]).append_column("place", place),
        [("label", "ascending"), ("score", "descending"), ("place", "ascending")],
    )
    return detections.take(order)


def write_part(output: str, name: str, table: pa.Table) -> PartFile:
    """Write a table of `images_schema` or of DETECTIONS to the path `name` below OUTPUT."""
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        row_group_size=ROWS_PER_GROUP,
        # Floats rarely repeat. With dictionaries for them, files are a third larger.
        use_dictionary=[f.name for f in table.schema if not pa.types.is_floating(f.type)],
    )
    data = buffer.getvalue()
    fs, path = open_location(join(output, name), "OUTPUT")
    write_whole(fs, path, data)
    return PartFile(name, len(table), len(data), hashlib.sha256(data).hexdigest())
