"""`detr-batch compare`: what changed between two OUTPUTs, or between two runs of one.

DuckDB joins the images and spills to disk. Their boxes come from it sorted by image, some hundred
thousand at a time. Only sums stay in memory (`jobs/compare/changes.py`).
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from jobs.compare.box_pairs import Boxes
from jobs.compare.changed_images import classify_boxes
from jobs.compare.changes import Changes, Side
from jobs.compare.options import Comparison
from jobs.output.run_documents import choosing_options, computations, score_threshold
from jobs.output.views import IS_USABLE, add_views, finished_runs, limit_memory
from jobs.query import run_with_second_attempt
from jobs.report.imported import read_import
from jobs.report.reports import with_tables
from jobs.report.samples import HAS_NAME
from pipeline.storage.files import InputError

ROWS = 200_000  # boxes read at a time
MEMORY = "2GB"  # memory limit of DuckDB, which spills the rest to disk
NAMED = 5  # example names of images that are on one side only
SIDES = ("a", "b")
# The name that joins an image of both sides: its image_id, or its last part without the suffix.
BY_ID = "image_id"
BY_NAME = r"regexp_replace(regexp_extract(image_id, '[^/#]+$'), '\.[^.]*$', '')"
PLACE = "uri || ' ' || image_id"
_PAIRS = """
CREATE TEMP TABLE pairs AS
WITH a AS (SELECT run, shard, image_id, uri, etag, status, {name} AS name FROM a.latest_images),
     b AS (SELECT run, shard, image_id, uri, etag, status, {name} AS name FROM b.latest_images),
     -- ids of Parquet rows may come again in other files
     repeated AS (SELECT name FROM a GROUP BY name HAVING count(*) > 1
                  UNION SELECT name FROM b GROUP BY name HAVING count(*) > 1),
     left_side AS (SELECT *, if(name IN (FROM repeated), {place}, '') AS place FROM a),
     right_side AS (SELECT *, if(name IN (FROM repeated), {place}, '') AS place FROM b)
SELECT row_number() OVER (ORDER BY coalesce(a.name, b.name), coalesce(a.place, b.place)) AS pair,
    a.run AS run_a, a.shard AS shard_a, a.image_id AS image_id_a, a.status AS status_a,
    b.run AS run_b, b.shard AS shard_b, b.image_id AS image_id_b, b.status AS status_b,
    a.uri = b.uri AND a.etag <> b.etag AS other_content
FROM left_side AS a FULL JOIN right_side AS b ON a.name = b.name AND a.place = b.place
"""
_COUNTS = {
    "a": "run_a IS NOT NULL",
    "b": "run_b IS NOT NULL",
    "compared": "status_a = 'ok' AND status_b = 'ok'",
    "failed_a": "status_a <> 'ok' AND status_b = 'ok'",
    "failed_b": "status_a = 'ok' AND status_b <> 'ok'",
    "failed_both": "status_a <> 'ok' AND status_b <> 'ok'",
    "only_a": "run_b IS NULL",
    "only_b": "run_a IS NULL",
    "other_content": "other_content",
}
_KINDS = f"""
CREATE TEMP TABLE kinds AS
SELECT row_number() OVER (ORDER BY lower(label)) - 1 AS kind, lower(label) AS name,
    min(label) AS shown
FROM (SELECT label FROM a.latest UNION ALL SELECT label FROM b.latest)
WHERE {HAS_NAME}
GROUP BY lower(label)
"""
_BOXES = f"""
WITH boxes AS (
    SELECT pair, false AS in_b, run_b AS other_run, d.* FROM a.detections AS d JOIN {{pairs}}
        ON d.run = run_a AND d.shard = shard_a AND d.image_id = image_id_a AND status_b = 'ok'
    UNION ALL
    SELECT pair, true AS in_b, run_a AS other_run, d.* FROM b.detections AS d JOIN {{pairs}}
        ON d.run = run_b AND d.shard = shard_b AND d.image_id = image_id_b AND status_a = 'ok'
)
SELECT pair, in_b, kind, score, x_min, y_min, x_max, y_max, score < threshold AS below
FROM boxes JOIN kinds ON lower(label) = kinds.name
    JOIN thresholds ON thresholds.run = other_run AND thresholds.of_b <> in_b
WHERE {IS_USABLE}
ORDER BY pair, in_b, detection
"""
_CHOSEN = """
SELECT pair, image_id_a, image_id_b,
    {'run': a.run, 'shard': a.shard, 'index': a.index_in_shard, 'uri': a.uri,
     'size': [a.width, a.height]} AS a,
    {'run': b.run, 'shard': b.shard, 'index': b.index_in_shard, 'uri': b.uri,
     'size': [b.width, b.height]} AS b
FROM chosen
    JOIN a.images AS a ON a.run = run_a AND a.shard = shard_a AND a.image_id = image_id_a
    JOIN b.images AS b ON b.run = run_b AND b.shard = shard_b AND b.image_id = image_id_b
"""
# Scores are float32 too, so a box that a run kept is not below that run's own threshold.
THRESHOLDS = pa.schema([("of_b", pa.bool_()), ("run", pa.string()), ("threshold", pa.float32())])


def compare(comparison: Comparison) -> dict[str, Any]:
    """Find what is new, gone and changed in b since a.

    InputError if no image is in both.
    """
    with tempfile.TemporaryDirectory(prefix="detr-batch-") as spilled:
        connect_to_sides = partial(_connect, comparison, spilled)
        outputs = dict.fromkeys((comparison.output_a, comparison.output_b))
        return run_with_second_attempt(
            connect_to_sides, partial(_compare_images, comparison), *outputs
        )


def _connect(comparison: Comparison, spilled: str) -> duckdb.DuckDBPyConnection:
    """Open a connection with the views of both sides, in the schemas a and b."""
    connection = duckdb.connect()
    limit_memory(connection, MEMORY, spilled)
    for side in SIDES:
        output, run = comparison.place(side)
        runs = finished_runs(output) if run is None else [with_tables(output, run)]
        add_views(connection, output, runs, schema=side)
    return connection


def _compare_images(
    comparison: Comparison, connection: duckdb.DuckDBPyConnection
) -> dict[str, Any]:
    sides = {side: _describe_side(comparison, side, connection) for side in SIDES}
    images = _join_images(comparison, connection)
    connection.execute(_KINDS)
    names = [name for (name,) in connection.sql("SELECT shown FROM kinds ORDER BY kind").fetchall()]
    changes = Changes(len(names), comparison.iou, comparison.most)
    thresholds = [
        {"of_b": side == "b", "run": run, "threshold": threshold}
        for side in SIDES
        for run, threshold in sides[side]["score_thresholds"].items()
    ]
    connection.register("thresholds", pa.Table.from_pylist(thresholds, THRESHOLDS))
    for left, right in _read_batches(connection, "pairs"):
        changes.add(left, right)
    images["crowded"] = len(changes.crowded)
    if changes.crowded:
        images["examples"]["crowded"] = _names_of(connection, changes.crowded[:NAMED])
    images["compared"] -= images["crowded"]
    images["unchanged"] = images["compared"] - changes.images_changed
    return {
        **sides,
        "iou": comparison.iou,
        "images": images,
        **changes.summary(names),
        "most_different": _list_most_different(comparison, connection, changes, names),
    }


def _describe_side(
    comparison: Comparison, side: str, connection: duckdb.DuckDBPyConnection
) -> dict[str, Any]:
    """Describe where the labels of one side come from."""
    output, _ = comparison.place(side)
    made = connection.sql(
        f"SELECT DISTINCT run, model, model_fingerprint FROM {side}.latest_images ORDER BY ALL"
    ).fetchall()
    runs = sorted({run for run, _, _ in made})
    unnamed = connection.sql(f"SELECT count(*) FROM {side}.latest WHERE NOT ({HAS_NAME})")
    ((without_name,),) = unnamed.fetchall()
    unusable = connection.sql(f"SELECT count(*) FROM {side}.latest WHERE NOT {IS_USABLE}")
    ((not_usable,),) = unusable.fetchall()
    return {
        "output": output,
        "runs": runs,
        "models": sorted({f"{model} ({fingerprint})" for _, model, fingerprint in made}),
        "score_thresholds": {run: score_threshold(output, run) for run in runs},
        "box_rules": sorted({choosing_options(output, run) for run in runs}),
        "computations": sorted({text for run in runs for text in computations(output, run)}),
        "imported_runs": [run for run in runs if read_import(output, run) is not None],
        "boxes_without_name": without_name,  # which are not compared
        "boxes_not_usable": not_usable,  # nor are these
    }


def _join_images(comparison: Comparison, connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Join the images of both sides into the table `pairs`, and count them."""
    connection.execute(_PAIRS.format(name=BY_NAME if comparison.by_name else BY_ID, place=PLACE))
    counts = ", ".join(f"count(*) FILTER ({which})" for which in _COUNTS.values())
    (row,) = connection.sql(f"SELECT {counts} FROM pairs").fetchall()
    images: dict[str, Any] = dict(zip(_COUNTS, row, strict=True))
    examples = {}
    for side, other in (SIDES, SIDES[::-1]):
        some = connection.sql(
            f"SELECT image_id_{side} FROM pairs WHERE run_{other} IS NULL "
            f"ORDER BY ALL LIMIT {NAMED}"
        )
        examples[f"only_{side}"] = [name for (name,) in some.fetchall()]
    if images["only_a"] == images["a"]:
        a, b = (examples[f"only_{side}"][:1] or ["nothing"] for side in SIDES)
        raise InputError(
            f"no image is in both: one is {a[0]} in {comparison.output_a}, another {b[0]} in "
            f"{comparison.output_b}"
            + ("" if comparison.by_name else "; --by-name compares the last parts of such names")
        )
    return {**images, "examples": examples}


def _names_of(connection: duckdb.DuckDBPyConnection, pairs: list[int]) -> list[str]:
    found = connection.execute(
        "SELECT image_id_b FROM pairs WHERE list_contains($1, pair) ORDER BY pair", [pairs]
    )
    return [name for (name,) in found.fetchall()]


def _read_batches(connection: duckdb.DuckDBPyConnection, pairs: str) -> Iterator[tuple[Side, Side]]:
    """Read the boxes of both sides for a table of pairs, whole images at a time."""
    left_over: pa.Table | None = None
    for batch in connection.sql(_BOXES.format(pairs=pairs)).to_arrow_reader(ROWS):
        rows = pa.Table.from_batches([batch])
        if left_over is not None:
            rows = pa.concat_tables([left_over, rows])
        pair = rows["pair"].to_numpy()
        # boxes of the last image may continue in the next batch
        whole = int(np.searchsorted(pair, pair[-1]))
        if whole:
            yield _split_sides(rows[:whole])
        left_over = rows[whole:]
    if left_over is not None and len(left_over):
        yield _split_sides(left_over)


def _split_sides(rows: pa.Table) -> tuple[Side, Side]:
    columns = {name: rows[name].to_numpy() for name in rows.column_names}
    box = np.stack([columns[name] for name in ("x_min", "y_min", "x_max", "y_max")], axis=1)
    in_b = columns["in_b"]

    def side(chosen: Any) -> Side:
        pair, kind = (columns[name][chosen].astype(np.int64) for name in ("pair", "kind"))
        score = columns["score"][chosen].astype(float)
        boxes = Boxes(pair, kind, score, box[chosen].astype(float))
        return Side(boxes, columns["below"][chosen])

    return side(~in_b), side(in_b)


def _list_most_different(
    comparison: Comparison,
    connection: duckdb.DuckDBPyConnection,
    changes: Changes,
    names: list[str],
) -> list[dict[str, Any]]:
    """List the images that differ most.

    If the comparison is `with_boxes`, each has the boxes that `jobs.compare.page` draws.
    """
    different = sorted(changes.different, reverse=True)
    connection.register(
        "wanted", pa.table({"pair": pa.array([d.pair for d in different], "int64")})
    )
    connection.execute("CREATE TEMP TABLE chosen AS FROM pairs SEMI JOIN wanted USING (pair)")
    rows = connection.sql(_CHOSEN if comparison.with_boxes else "FROM chosen").to_arrow_table()
    by_pair = {row["pair"]: row for row in rows.to_pylist()}
    found = [
        {
            "image_a": by_pair[d.pair]["image_id_a"],
            "image_b": by_pair[d.pair]["image_id_b"],
            **vars(d),
        }
        for d in different
    ]
    if comparison.with_boxes:
        boxes: dict[int, list[dict[str, Any]]] = {}
        for left, right in _read_batches(connection, "chosen"):
            boxes.update(classify_boxes(left, right, comparison.iou, names))
        for one in found:
            one["boxes"] = boxes[one["pair"]]
            one["places"] = {side: by_pair[one["pair"]][side] for side in SIDES}
    return found
