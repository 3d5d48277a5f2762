"""`detr-batch compact`: merge the labels of many runs into one run of few large files.

The result is a run like any other. Its manifest `replaces` the runs that it was made of, so readers
see either those runs or the new one. The new run keeps what the views `latest_images` and `latest`
show. Rows of objects that a later run labelled again are left out. DuckDB sorts the rows, on disk
if memory is not enough, and files are written as the rows arrive.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from jobs.output import paths
from jobs.output.carried import common_carry
from jobs.output.documents import damaged_document
from jobs.output.errors import CommitLost
from jobs.output.known_objects import read_plan
from jobs.output.manifest import Manifest, make_manifest
from jobs.output.output_writer import OutputWriter
from jobs.output.paths import TABLES
from jobs.output.run_documents import environment, read_document, write_record, write_table
from jobs.output.run_ids import new_run_id
from jobs.output.user_errors import refuse_no_output
from jobs.output.views import connect, explain_query_errors, limit_memory
from jobs.runs import find_problems
from pipeline.plan.plan import FILES_PER_SHARD
from pipeline.plan.shards import PLAN
from pipeline.schema import DETECTIONS, images_schema
from pipeline.stages.publish import (
    BOXES_PER_FILE,
    IMAGES_PER_FILE,
    PartFile,
    PublishTarget,
    ReconcileError,
    write_part,
)
from pipeline.storage.files import InputError, join

MEMORY = "512MB"  # memory limit of DuckDB's sort, which spills to disk beyond it
ROWS_AT_ONCE = 1 << 16

# `members` are the objects of these runs, in the versions that the newest labels are of. Loose
# files move to new shards, which the new plan names; an archive is its own shard. `places` holds
# the rows of `images` as they will be. They are not looked up by their names later, because earlier
# versions gave one name to several rows of a Parquet file. Names that start with `compact_` are
# those of no carried column.
_PLACES = f"""
CREATE TABLE members AS
    SELECT member.uri, member.etag, member.size,
        kind, shard, "limit", image_column, id_column, access
    FROM (SELECT unnest(members) AS member, * EXCLUDE (members) FROM plans)
    WHERE kind = 'results'
        OR (member.uri, run) IN (SELECT DISTINCT uri, run FROM latest_images WHERE run IN $ids)
    QUALIFY row_number() OVER (PARTITION BY member.uri ORDER BY run DESC) = 1;
CREATE TABLE loose AS
    SELECT uri, etag, size, access, n % {FILES_PER_SHARD} AS index_in_shard,
        $source || format('#files-{{:05d}}', n // {FILES_PER_SHARD}) AS shard
    FROM (SELECT *, row_number() OVER (ORDER BY uri) - 1 AS n FROM members WHERE kind = 'files');
CREATE TABLE places AS
    WITH moved AS (
        SELECT old.* REPLACE (coalesce(loose.shard, old.shard) AS shard,
                coalesce(loose.index_in_shard, old.index_in_shard) AS index_in_shard),
            old.shard AS compact_shard
        FROM latest_images AS old LEFT JOIN loose USING (uri) WHERE run IN $ids
    ), counted AS (
        SELECT *, row_number() OVER places - 1 AS compact_images,
            sum(num_detections) OVER places AS compact_boxes
        FROM moved WINDOW places AS (ORDER BY shard, index_in_shard, image_id)
    )
    SELECT *, dense_rank() OVER (
        ORDER BY compact_images // $images_per_file + compact_boxes // $boxes_per_file
    ) - 1 AS compact_part
    FROM counted;
"""
_IMAGES = "FROM places ORDER BY compact_part, shard, index_in_shard, image_id"
# Boxes of images of one name lie in the part of the first of them.
_DETECTIONS = """
SELECT compact_part, old.* REPLACE (place.shard AS shard)
FROM detections AS old JOIN (
    SELECT run, compact_shard, image_id, min(compact_part) AS compact_part, min(shard) AS shard,
        min(index_in_shard) AS index_in_shard
    FROM places GROUP BY ALL
) AS place ON (old.run, old.shard, old.image_id) = (place.run, place.compact_shard, place.image_id)
ORDER BY compact_part, label, score DESC, place.shard, place.index_in_shard, detection
"""
_PLAN = """
SELECT shard, 'files' AS kind, NULL AS "limit", NULL AS image_column, NULL AS id_column,
    max(access) AS access, list(
    {'uri': uri, 'etag': etag, 'size': size} ORDER BY index_in_shard) AS members
FROM loose GROUP BY shard
UNION ALL
SELECT shard, kind, "limit", image_column, id_column, access,
    [{'uri': uri, 'etag': etag, 'size': size}]
FROM members WHERE kind <> 'files'
ORDER BY shard
"""
_COUNTS = """
SELECT (SELECT count(*) FROM images WHERE run IN $ids),
    (SELECT count(*) FROM latest_images WHERE run IN $ids),
    (SELECT count(*) FROM latest WHERE run IN $ids)
"""


@dataclass(frozen=True)
class Compacted:
    """The result of compacting the runs over one INPUT."""

    run_id: str
    runs: int
    images: int
    superseded: int  # rows of `images` that were left out
    files_before: int
    files: int


def compact(
    output: str,
    images_per_file: int = IMAGES_PER_FILE,
    boxes_per_file: int = BOXES_PER_FILE,
    single_writer: bool = False,
    keep_replaced: float = 0.0,
) -> list[Compacted]:
    """Merge all runs over the same INPUT into one, for each INPUT that has several runs.

    InputError for a place that is no OUTPUT, or if an unfinished run must be finished first.
    DamagedOutput if a table that would be merged is not as it was written. ReconcileError, with
    nothing changed, if rows would be lost.
    """
    refuse_no_output(output)
    with OutputWriter(output, single_writer, keep_replaced) as writer:
        runs = writer.catalog.committed_runs()
        if writer.unfinished_runs():
            raise InputError(
                f"{output} holds an unfinished run: run its `detr-batch label` again, then compact"
            )
        done = []
        for source in sorted({run["input"] for run in runs}):
            group = [run for run in runs if run["input"] == source]
            if len(group) < 2:
                continue
            with writer.explain_takeover():
                _refuse_damaged_tables(output, group)
                documents = _read_documents(output, group)
            writer.begin_writing()
            run_id = new_run_id(output)
            try:
                with (
                    writer.explain_takeover(),
                    explain_query_errors(output),
                    connect(output, runs, group) as connection,
                ):
                    result, manifest = _compact_group(
                        connection,
                        writer,
                        run_id,
                        group,
                        documents,
                        (images_per_file, boxes_per_file),
                    )
            except BaseException:
                writer.discard_tables(run_id)
                raise
            try:
                writer.commit(manifest, manifest["replaces"], "compacted")
            except CommitLost:
                writer.discard_tables(run_id)
                raise
            runs = [run for run in runs if run not in group] + [manifest]
            done.append(result)
    return done


@dataclass(frozen=True)
class _Documents:
    """What a merged run takes over from the documents of its runs."""

    plans: pa.Table
    options: dict[str, Any]  # of the newest run, from its run.json


def _read_documents(output: str, group: Sequence[Manifest]) -> _Documents:
    """Read all that is needed before anything is written. DamagedOutput names a damaged file."""
    newest = read_document(output, group[-1]["run_id"], "run.json")
    return _Documents(_read_plans(output, group), newest["options"])


def _refuse_damaged_tables(output: str, group: Sequence[Manifest]) -> None:
    """Raise DamagedOutput if a table of these runs is not as it was written.

    The merged tables get digests of their own, which would hide the damage for ever.
    """
    for run in group:
        for problem in find_problems(output, run):
            raise damaged_document(problem["path"])


def _compact_group(
    connection: duckdb.DuckDBPyConnection,
    writer: OutputWriter,
    run_id: str,
    group: list[Manifest],
    documents: _Documents,
    most: tuple[int, int],
) -> tuple[Compacted, Manifest]:
    """Write the tables and documents of the run that replaces `group`, and make its manifest.

    `most` are the greatest numbers of images and of boxes in a file.
    """
    newest, output = group[-1], writer.output
    target = writer.publish_target(
        run_id, newest["model"], newest["model_fingerprint"], newest["labels"]
    )
    ids = [run["run_id"] for run in group]
    carry = common_carry(group)
    with tempfile.TemporaryDirectory(prefix="detr-batch-") as folder:
        limit_memory(connection, MEMORY, folder)
        connection.register("plans", documents.plans)
        source = newest["input"].rstrip("/")
        limits = {"images_per_file": most[0], "boxes_per_file": most[1]}
        given = {"source": source, "ids": ids, **limits}
        for statement in filter(str.strip, _PLACES.split(";")):
            used = {name: value for name, value in given.items() if f"${name}" in statement}
            connection.execute(statement, used)
        files = [
            *_write_files(connection, _IMAGES, images_schema(carry), target, "images"),
            *_write_files(connection, _DETECTIONS, DETECTIONS, target, "detections"),
        ]
        before, kept, boxes = connection.execute(_COUNTS, {"ids": ids}).fetchall()[0]
        _check_row_counts(files, kept, boxes)
        by_status = connection.sql("SELECT status, count(*) FROM places GROUP BY 1 ORDER BY 1")
        counts = dict(by_status.fetchall())
        plan = connection.sql(_PLAN).to_arrow_table().select(PLAN.names).cast(PLAN)
    plan_name = paths.plan(run_id, writer.token)
    write_table(join(output, plan_name), plan)
    record = {
        "run_id": run_id,
        "compacts": ids,
        "options": documents.options,
        "started_at": time.time(),
        **environment(),
    }
    write_record(output, run_id, record)
    files_before = sum(len(run["files"]) for run in group)
    return (
        Compacted(run_id, len(ids), kept, before - kept, files_before, len(files)),
        make_manifest(target, plan_name, newest["input"], files, counts, ids, True, carry),
    )


def _read_plans(output: str, runs: Sequence[Manifest]) -> pa.Table:
    """Read the plans of all runs, with the column `run`."""
    tables = []
    for run in runs:
        run_id = run["run_id"]
        table = pa.concat_tables([PLAN.empty_table(), *read_plan(output, run["plan"])])
        tables.append(table.append_column("run", pa.array([run_id] * len(table), pa.string())))
    return pa.concat_tables(tables)


def _write_files(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    schema: pa.Schema,
    target: PublishTarget,
    name: str,
) -> Iterator[PartFile]:
    """Write the files of one table; its rows come by ascending part, one part for each file.

    At least one file is written. Every part of `images` has a file of `detections`, which may have
    no rows.
    """
    (last,) = connection.sql("SELECT coalesce(max(compact_part), 0) FROM places").fetchall()[0]
    rows = schema.empty_table()
    part = 0
    for batch in connection.sql(sql).to_arrow_reader(ROWS_AT_ONCE):
        table = pa.Table.from_batches([batch])
        while len(table):
            same = table.filter(pc.equal(table["compact_part"], part))
            run_id = pa.array([target.run_id] * len(same), pa.string())
            same = same.set_column(same.column_names.index("run_id"), "run_id", run_id)
            rows = pa.concat_tables([rows, same.select(schema.names).cast(schema)])
            table = table.slice(len(same))
            if len(table):
                yield write_part(
                    target.output, target.part_name.format(table=name, number=part), rows
                )
                rows, part = schema.empty_table(), part + 1
    while part <= last:
        yield write_part(target.output, target.part_name.format(table=name, number=part), rows)
        rows, part = schema.empty_table(), part + 1


def _check_row_counts(files: Sequence[PartFile], images: int, boxes: int) -> None:
    """ReconcileError unless the files hold as many rows as the views."""
    found = [
        sum(file.rows for file in files if file.path.startswith(f"{table}/")) for table in TABLES
    ]
    if found != [images, boxes]:
        raise ReconcileError(
            f"{found[0]} images and {found[1]} boxes were written where {images} and {boxes} "
            "belong, so nothing was changed"
        )
