"""What a run's tables say, for its page: counts, samples of failures, and pictures to show.

Sums are DuckDB's over whole columns. Pictures are chosen from a few of the table files, however
many there are, so that a page of ten million images costs about what one of a million does.
"""

from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from jobs.output.manifest import FileOfRun, Manifest
from jobs.output.views import connect

CLASSES = 16  # the most frequent, told one by one
BINS = 20  # of scores
SURE = 0.5  # a score from which a box counts as sure
SAMPLES_OF_FAILURES = 3  # a reason
DRAWN = 0.3  # boxes from this score up are drawn, though the run may keep lower ones
BOXES_DRAWN = 60  # of an image
SHOWN = 3  # pictures of each kind
FILES_LOOKED_INTO = 4  # of 100,000 images each, for pictures
# An archive is read from its beginning to the last picture that is wanted of it.
ARCHIVES_OPENED, ARCHIVE_IMAGES = 4, 64


@dataclass(frozen=True)
class ClassCount:
    label: str
    boxes: int
    sure: int  # of these, with a score of SURE or more


@dataclass(frozen=True)
class Failure:
    reason: str
    images: int
    samples: list[tuple[str, str]]  # image_id and error


@dataclass(frozen=True)
class Shown:
    """An image whose picture is shown, and why that one."""

    kind: str  # a key of KINDS
    image_id: str
    shard: str
    index: int
    size: tuple[int, int]  # width, height
    boxes: list[dict[str, Any]]  # label, label_id, score and corners, best first


@dataclass(frozen=True)
class Facts:
    classes: list[ClassCount]  # those with most sure boxes first
    other_classes: int
    other_boxes: int  # of those
    scores: list[int]  # boxes in each of BINS equal parts of 0 to 1
    sure: int  # boxes with a score of SURE or more
    without_boxes: int  # labelled images in which nothing was found
    failures: list[Failure]
    shown: list[Shown]
    chosen_from: int  # images among which those were chosen


# Kind -> heading, condition and order.
KINDS = {
    "random": ("Chosen at random", "true", "hash(image_id, shard)"),
    "sure": ("Most confident", "boxes > 0", "max_score DESC, hash(image_id)"),
    "crowded": ("Most objects", "boxes > 1", "boxes DESC, hash(image_id)"),
    "unsure": ("Least confident", "boxes > 0", "max_score, hash(image_id)"),
}


def gather_facts(
    output: str, manifest: Manifest, archives: list[str], threshold: float | None
) -> Facts:
    """Facts of one run, by its manifest, which need not be written yet.

    `archives` are its shards that are no loose files, `threshold` the scores that it kept.
    """
    with connect(output, [manifest]) as tables:
        classes = _classes(tables)
        scores, sure = _scores(tables)
        (without,) = _one(
            tables, "SELECT count(*) FROM images WHERE status = 'ok' AND num_detections = 0"
        )
        failures = _failures(tables)
    few: Manifest = {**manifest, "files": _some_files(manifest["files"])}
    with connect(output, [few]) as tables:
        shown, chosen_from = _shown(tables, archives, threshold)
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


def _one(tables: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    (row,) = tables.sql(sql).fetchall()
    answer: tuple[Any, ...] = row
    return answer


def _classes(tables: duckdb.DuckDBPyConnection) -> list[ClassCount]:
    rows = tables.sql(
        f"SELECT label, count(*), count(*) FILTER (score >= {SURE}) FROM detections "
        "GROUP BY label ORDER BY 3 DESC, 2 DESC, 1"
    ).fetchall()
    return [ClassCount(*row) for row in rows]


def _scores(tables: duckdb.DuckDBPyConnection) -> tuple[list[int], int]:
    rows = tables.sql(
        f"SELECT least(floor(score * {BINS}), {BINS - 1})::INT, count(*), "
        f"count(*) FILTER (score >= {SURE}) FROM detections GROUP BY 1"
    ).fetchall()
    counts = {part: count for part, count, _ in rows}
    return [counts.get(part, 0) for part in range(BINS)], sum(sure for _, _, sure in rows)


def _failures(tables: duckdb.DuckDBPyConnection) -> list[Failure]:
    rows = tables.sql(
        "SELECT status, count(*), arg_min({'id': image_id, 'error': error}, hash(image_id), "
        f"{SAMPLES_OF_FAILURES}) FROM images WHERE status <> 'ok' GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    return [
        Failure(reason, images, [(one["id"], one["error"] or "") for one in samples])
        for reason, images, samples in rows
    ]


def _some_files(files: list[FileOfRun]) -> list[FileOfRun]:
    """FILES_LOOKED_INTO of the pairs of table files, evenly spaced."""
    names = sorted({file["path"].rpartition("/")[2] for file in files})
    step = max(1, len(names) / FILES_LOOKED_INTO)
    chosen = {names[int(k * step)] for k in range(min(len(names), FILES_LOOKED_INTO))}
    return [file for file in files if file["path"].rpartition("/")[2] in chosen]


def _shown(
    tables: duckdb.DuckDBPyConnection, archives: list[str], threshold: float | None
) -> tuple[list[Shown], int]:
    """Images to show, each once, and the number of those that could have been."""
    tables.register("archives", pa.table({"shard": pa.array(archives, pa.string())}))
    # All that the run kept counts, unless it kept more than is drawn.
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
    (count,) = _one(tables, "SELECT count(*) FROM candidates")
    chosen: dict[tuple[str, int], tuple[Any, ...]] = {}
    for kind, (_, condition, order) in KINDS.items():
        rows = tables.sql(
            "SELECT image_id, shard, index_in_shard, width, height FROM candidates "
            f"WHERE {condition} ORDER BY {order} LIMIT {SHOWN * len(KINDS)}"
        ).fetchall()
        new = [row for row in rows if (row[1], row[2]) not in chosen]
        chosen.update({(row[1], row[2]): (kind, *row) for row in new[:SHOWN]})
    return [_with_boxes(tables, *one) for one in chosen.values()], count


def _with_boxes(
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
