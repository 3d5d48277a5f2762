"""What a run's tables say, for its page: counts, samples of failures, and images to show.

DuckDB computes the sums over whole columns. The images to show come from a few of the table files,
however many there are, so a page for ten million images costs about as much as one for a million.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from jobs.output.manifest import Manifest
from jobs.output.views import connect, explain_query_errors
from jobs.report.samples import DRAWN, HAS_NAME, Samples, choose_files, choose_samples

CLASSES = 16  # most frequent classes, which are listed one by one
BINS = 20  # histogram bins of the scores
SURE = 0.5  # least score of a box that counts as sure
THRESHOLDS = tuple(tenths / 10 for tenths in range(1, 10))
SAMPLES_OF_FAILURES = 3  # samples for each reason


@dataclass(frozen=True)
class ClassCount:
    label: str
    boxes: int
    sure: int  # of these boxes, those with a score of SURE or more


@dataclass(frozen=True)
class Kept:
    """What a score threshold would keep of a run's boxes."""

    threshold: float | None  # None: all boxes of a run without a threshold
    boxes: int
    empty: int  # labelled images that would have no box


@dataclass(frozen=True)
class Failure:
    reason: str
    images: int
    samples: list[tuple[str, str]]  # (image_id, error) pairs


@dataclass(frozen=True)
class Facts:
    """What the tables of one run say. Boxes whose class has no name count in `unnamed` alone."""

    classes: list[ClassCount]  # classes with the most sure boxes first
    other_classes: int  # number of classes that are not in `classes`
    other_boxes: int  # boxes of those other classes
    unnamed: int
    scores: list[int]  # boxes in each of BINS equal parts of 0 to 1
    sure: int  # boxes with a score of SURE or more
    kept: list[Kept]  # by ascending threshold, the run's own first
    drawn: float  # least score of the boxes that are drawn
    without_boxes: int  # labelled images without a box that is drawn
    failures: list[Failure]
    samples: Samples


def gather_facts(
    output: str,
    manifest: Manifest,
    archives: Sequence[str],
    threshold: float | None,
    fetchable: str = "true",
) -> Facts:
    """Collect the facts of one run from its tables; its manifest need not be written yet.

    `archives` are the names of its shards that are not loose files. `threshold` is the least score
    that it kept; None where it is not known. `fetchable` is an SQL condition on its images that can
    be fetched for the page.
    """
    drawn = max(DRAWN, threshold or 0.0)
    with explain_query_errors(output), connect(output, [manifest]) as tables:
        classes = count_classes(tables, SURE)
        scores = _count_scores(tables)
        kept = _count_kept(tables, threshold)
        failures = _sample_failures(tables)
        without, unnamed = _fetch_row(
            tables,
            f"SELECT (SELECT count(*) FILTER (coalesce(max_score, 0) < {drawn}) FROM images "
            f"WHERE status = 'ok'), (SELECT count(*) FROM detections WHERE NOT ({HAS_NAME}))",
        )
    few: Manifest = {**manifest, "files": choose_files(manifest["files"])}
    with explain_query_errors(output), connect(output, [few]) as tables:
        labels = [one.label for one in classes]
        samples = choose_samples(tables, archives, fetchable, labels, drawn)
    rest = classes[CLASSES:]
    return Facts(
        classes[:CLASSES],
        len(rest),
        sum(one.boxes for one in rest),
        unnamed,
        scores,
        sum(one.sure for one in classes),
        kept,
        drawn,
        without,
        failures,
        samples,
    )


def _fetch_row(tables: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    (row,) = tables.sql(sql).fetchall()
    answer: tuple[Any, ...] = row
    return answer


def count_classes(tables: duckdb.DuckDBPyConnection, sure: float) -> list[ClassCount]:
    """Count the boxes of each class that has a name, and those with a score of `sure` or more."""
    rows = tables.sql(
        f"SELECT label, count(*), count(*) FILTER (score >= {sure}) FROM detections "
        f"WHERE {HAS_NAME} GROUP BY label ORDER BY 3 DESC, 2 DESC, 1"
    ).fetchall()
    return [ClassCount(*row) for row in rows]


def _count_scores(tables: duckdb.DuckDBPyConnection) -> list[int]:
    rows = tables.sql(
        f"SELECT greatest(0, least(floor(score * {BINS}), {BINS - 1}))::INT, count(*) "
        f"FROM detections WHERE {HAS_NAME} GROUP BY 1"
    ).fetchall()
    counts = dict(rows)
    return [counts.get(part, 0) for part in range(BINS)]


def _count_kept(tables: duckdb.DuckDBPyConnection, threshold: float | None) -> list[Kept]:
    """Count what the run's own threshold keeps, and each of THRESHOLDS above it."""
    steps = [step for step in THRESHOLDS if step > (threshold or 0.0)]

    def count(column: str, words: str = ">=") -> str:
        return ", ".join(["count(*)", *(f"count(*) FILTER ({column} {words} {s})" for s in steps)])

    boxes = _fetch_row(tables, f"SELECT {count('score')} FROM detections WHERE {HAS_NAME}")
    images = _fetch_row(
        tables,
        f"SELECT count(*) FILTER (num_detections = 0), {count('coalesce(max_score, 0)', '<')} "
        "FROM images WHERE status = 'ok'",
    )
    empty = (images[0], *images[2:])
    return [
        Kept(step, count, without)
        for step, count, without in zip([threshold, *steps], boxes, empty, strict=True)
    ]


def _sample_failures(tables: duckdb.DuckDBPyConnection) -> list[Failure]:
    rows = tables.sql(
        "SELECT status, count(*), arg_min({'id': image_id, 'error': error}, hash(image_id), "
        f"{SAMPLES_OF_FAILURES}) FROM images WHERE status <> 'ok' GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    return [
        Failure(reason, images, [(one["id"], one["error"] or "") for one in samples])
        for reason, images, samples in rows
    ]
