"""What a run's tables say, for its page: counts, samples of failures, and images to show.

DuckDB computes the sums over whole columns. The images to show come from a few of the table files,
however many there are, so a page for ten million images costs about as much as one for a million.
"""

from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from jobs.output.manifest import FileOfRun, Manifest
from jobs.output.views import connect, explain_query_errors

CLASSES = 16  # most frequent classes, which are listed one by one
BINS = 20  # histogram bins of the scores
SURE = 0.5  # least score of a box that counts as sure
SAMPLES_OF_FAILURES = 3  # samples for each reason
DRAWN = 0.3  # least score of the boxes that are drawn, although the run may keep lower ones
BOXES_DRAWN = 60  # most boxes drawn on one image
SHOWN = 3  # images of each kind
FILES_LOOKED_INTO = 4  # table files, of 100,000 images each, from which images are chosen
# An archive is read from its beginning to the last image wanted, so only its start is used.
ARCHIVES_OPENED, ARCHIVE_IMAGES = 4, 64


@dataclass(frozen=True)
class ClassCount:
    label: str
    boxes: int
    sure: int  # of these boxes, those with a score of SURE or more


@dataclass(frozen=True)
class Failure:
    reason: str
    images: int
    samples: list[tuple[str, str]]  # (image_id, error) pairs


@dataclass(frozen=True)
class Shown:
    """An image that the page shows, and why it was chosen."""

    kind: str  # key of KINDS
    image_id: str
    shard: str
    index: int
    size: tuple[int, int]  # (width, height) in pixels
    boxes: list[dict[str, Any]]  # label, label_id, score and corners of each box, best score first


@dataclass(frozen=True)
class Facts:
    classes: list[ClassCount]  # classes with the most sure boxes first
    other_classes: int  # number of classes that are not in `classes`
    other_boxes: int  # boxes of those other classes
    scores: list[int]  # boxes in each of BINS equal parts of 0 to 1
    sure: int  # boxes with a score of SURE or more
    without_boxes: int  # labelled images without any detection
    failures: list[Failure]
    shown: list[Shown]
    chosen_from: int  # number of images among which `shown` was chosen


# Kind -> (heading, SQL condition, SQL order).
KINDS = {
    "random": ("Chosen at random", "true", "hash(image_id, shard)"),
    "sure": ("Most confident", "boxes > 0", "max_score DESC, hash(image_id)"),
    "crowded": ("Most objects", "boxes > 1", "boxes DESC, hash(image_id)"),
    "unsure": ("Least confident", "boxes > 0", "max_score, hash(image_id)"),
}


def gather_facts(
    output: str, manifest: Manifest, archives: list[str], threshold: float | None
) -> Facts:
    """Collect the facts of one run from its tables; its manifest need not be written yet.

    `archives` are the names of its shards that are not loose files. `threshold` is the least score
    that it kept.
    """
    with explain_query_errors(output), connect(output, [manifest]) as tables:
        classes = _count_classes(tables)
        scores, sure = _count_scores(tables)
        (without,) = _fetch_row(
            tables, "SELECT count(*) FROM images WHERE status = 'ok' AND num_detections = 0"
        )
        failures = _sample_failures(tables)
    few: Manifest = {**manifest, "files": _choose_files(manifest["files"])}
    with explain_query_errors(output), connect(output, [few]) as tables:
        shown, chosen_from = _choose_images(tables, archives, threshold)
    rest = classes[CLASSES:]
    return Facts(
        classes[:CLASSES],
        len(rest),
        sum(one.boxes for one in rest),
        scores,
        sure,
        without,
        failures,
        shown,
        chosen_from,
    )


def _fetch_row(tables: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    (row,) = tables.sql(sql).fetchall()
    answer: tuple[Any, ...] = row
    return answer


def _count_classes(tables: duckdb.DuckDBPyConnection) -> list[ClassCount]:
    rows = tables.sql(
        f"SELECT label, count(*), count(*) FILTER (score >= {SURE}) FROM detections "
        "GROUP BY label ORDER BY 3 DESC, 2 DESC, 1"
    ).fetchall()
    return [ClassCount(*row) for row in rows]


def _count_scores(tables: duckdb.DuckDBPyConnection) -> tuple[list[int], int]:
    rows = tables.sql(
        f"SELECT least(floor(score * {BINS}), {BINS - 1})::INT, count(*), "
        f"count(*) FILTER (score >= {SURE}) FROM detections GROUP BY 1"
    ).fetchall()
    counts = {part: count for part, count, _ in rows}
    return [counts.get(part, 0) for part in range(BINS)], sum(sure for _, _, sure in rows)


def _sample_failures(tables: duckdb.DuckDBPyConnection) -> list[Failure]:
    rows = tables.sql(
        "SELECT status, count(*), arg_min({'id': image_id, 'error': error}, hash(image_id), "
        f"{SAMPLES_OF_FAILURES}) FROM images WHERE status <> 'ok' GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    return [
        Failure(reason, images, [(one["id"], one["error"] or "") for one in samples])
        for reason, images, samples in rows
    ]


def _choose_files(files: list[FileOfRun]) -> list[FileOfRun]:
    """Choose FILES_LOOKED_INTO pairs of table files, evenly spaced."""
    names = sorted({file["path"].rpartition("/")[2] for file in files})
    step = max(1, len(names) / FILES_LOOKED_INTO)
    chosen = {names[int(k * step)] for k in range(min(len(names), FILES_LOOKED_INTO))}
    return [file for file in files if file["path"].rpartition("/")[2] in chosen]


def _choose_images(
    tables: duckdb.DuckDBPyConnection, archives: list[str], threshold: float | None
) -> tuple[list[Shown], int]:
    """Choose the images to show, each once; return them and the number of candidates."""
    tables.register("archives", pa.table({"shard": pa.array(archives, pa.string())}))
    # All boxes that the run kept are counted, unless it kept boxes below the score for drawing.
    counted = threshold is not None and threshold >= DRAWN
    boxes = "num_detections" if counted else "coalesce(drawn, 0)"
    drawn = f"SELECT shard, image_id, count(*) AS drawn FROM detections WHERE score >= {DRAWN}"
    tables.execute(
        "CREATE TEMP TABLE opened AS SELECT shard FROM archives SEMI JOIN images USING (shard) "
        f"ORDER BY hash(shard) LIMIT {ARCHIVES_OPENED}"
    )
    tables.execute(
        f"CREATE TEMP VIEW candidates AS SELECT images.*, {boxes} AS boxes FROM images "
        + ("" if counted else f"LEFT JOIN ({drawn} GROUP BY ALL) USING (shard, image_id) ")
        + "WHERE status = 'ok' AND (shard NOT IN (SELECT shard FROM archives) OR "
        f"(shard IN (SELECT shard FROM opened) AND index_in_shard < {ARCHIVE_IMAGES}))"
    )
    (count,) = _fetch_row(tables, "SELECT count(*) FROM candidates")
    chosen: dict[tuple[str, int], tuple[Any, ...]] = {}
    for kind, (_, condition, order) in KINDS.items():
        rows = tables.sql(
            "SELECT image_id, shard, index_in_shard, width, height FROM candidates "
            f"WHERE {condition} ORDER BY {order} LIMIT {SHOWN * len(KINDS)}"
        ).fetchall()
        new = [row for row in rows if (row[1], row[2]) not in chosen]
        chosen.update({(row[1], row[2]): (kind, *row) for row in new[:SHOWN]})
    return [_add_boxes(tables, *one) for one in chosen.values()], count


def _add_boxes(
    tables: duckdb.DuckDBPyConnection,
    kind: str,
    image_id: str,
    shard: str,
    index: int,
    width: int,
    height: int,
) -> Shown:
    boxes = tables.execute(
        "SELECT label, label_id, score, x_min, y_min, x_max, y_max FROM detections "
        f"WHERE shard = ? AND image_id = ? AND score >= {DRAWN} "
        f"ORDER BY detection LIMIT {BOXES_DRAWN}",
        [shard, image_id],
    )
    names = [column[0] for column in boxes.description or []]
    rows = [dict(zip(names, row, strict=True)) for row in boxes.fetchall()]
    return Shown(kind, image_id, shard, index, (width, height), rows)
