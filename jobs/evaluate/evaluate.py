"""`detr-batch evaluate`: COCO's numbers of an OUTPUT's newest labels, without the model."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from jobs.coco.reader import read_annotations
from jobs.coco.records import Annotations
from jobs.evaluate.annotated import (
    RULES,
    MatchedClasses,
    MatchedImages,
    matched_classes,
    matched_images,
)
from jobs.evaluate.average_precision import UNKNOWN, Found, Score, average_precision
from jobs.output.run_documents import score_threshold
from jobs.query import answer_query
from jobs.report.text import list_examples
from pipeline.schema import OK

NAMED = 5  # example names of missing images
_FOUND = """
SELECT position, class_id, score, x_min, y_min, x_max, y_max
FROM detections JOIN matched USING (run, shard, image_id)
    JOIN known ON known.label_id = detections.label_id
        AND known.label = coalesce(detections.label, '')
ORDER BY position, detection
"""


def evaluate(output: str, location: str, only_labelled: bool = False) -> dict[str, Any]:
    """Score OUTPUT against the annotation file at `location`; return the score and its basis.

    An annotated image that failed or was not labelled counts as one without detections, unless
    `only_labelled` is set. InputError if the two have no images or no classes in common.
    """
    truth = read_annotations(location)
    return answer_query(output, partial(_evaluate_output, output, truth, only_labelled))


def _evaluate_output(
    output: str, truth: Annotations, only_labelled: bool, connection: duckdb.DuckDBPyConnection
) -> dict[str, Any]:
    images = matched_images(connection, truth)
    classes = matched_classes(connection, truth)
    connection.register("matched", images.table)
    ids = list(truth.images)
    status = dict(
        zip(*(images.table[name].to_pylist() for name in ("position", "status")), strict=True)
    )
    labelled = {ids[at] for at, said in status.items() if said == OK}
    score = average_precision(
        truth, _read_detections(connection, truth, classes), labelled if only_labelled else None
    )
    runs = images.table["run"].unique().to_pylist()
    return {
        "images": _count_images(connection, truth, images, status, len(labelled)),
        "only_labelled": only_labelled,
        "classes": _describe_classes(classes, score),
        "objects_left_out": truth.left_out,
        "score_threshold": max(score_threshold(output, run) for run in runs),
        "metrics": score.metrics,
        "by_class": [
            {
                "category_id": one.class_id,
                "name": one.name,
                "objects": one.objects,
                "detections": one.detections,
                **one.metrics,
            }
            for one in score.classes
        ],
    }


def _read_detections(
    connection: duckdb.DuckDBPyConnection, truth: Annotations, classes: MatchedClasses
) -> Found:
    known = [
        {"label_id": number, "label": name, "class_id": class_id}
        for (number, name), class_id in classes.ids.items()
    ]
    fields = [("label_id", pa.int32()), ("label", pa.string()), ("class_id", pa.int64())]
    connection.register("known", pa.Table.from_pylist(known, schema=pa.schema(fields)))
    columns = connection.sql(_FOUND).fetchnumpy()
    sides = [columns[side] for side in ("x_min", "y_min", "x_max", "y_max")]
    return Found(
        np.array(list(truth.images), object)[columns["position"]],
        columns["class_id"],
        columns["score"],
        np.stack(sides, axis=1),
    )


def _count_images(
    connection: duckdb.DuckDBPyConnection,
    truth: Annotations,
    images: MatchedImages,
    status: dict[int, str],
    labelled: int,
) -> dict[str, Any]:
    """Count images on both sides and on one side only, with a few examples of the latter."""
    names = [image.file_name or image.id for image in truth.images.values()]
    failed = [names[at] for at, said in sorted(status.items()) if said != OK]
    absent = [name for at, name in enumerate(names) if at not in status]
    more = "FROM latest_images ANTI JOIN matched USING (run, shard, image_id)"
    ((unknown,),) = connection.sql(f"SELECT count(*) {more}").fetchall()
    extra = connection.sql(f"SELECT image_id {more} ORDER BY ALL LIMIT {NAMED}").fetchall()
    return {
        "annotated": len(names),
        "labelled": labelled,
        "failed": len(failed),
        "not_labelled": len(absent),
        "not_annotated": unknown,
        "examples": {
            "failed": failed[:NAMED],
            "not_labelled": absent[:NAMED],
            "not_annotated": [name for (name,) in extra],
        },
        "matched_by": images.by_rule,
    }


def _describe_classes(classes: MatchedClasses, score: Score) -> dict[str, Any]:
    never = [one.name for one in score.classes if one.objects and not one.detections]
    return {
        "matched_by": classes.rule,
        "annotated_not_labelled": never,
        "labelled_not_annotated": classes.unknown,
    }


def as_text(result: dict[str, Any]) -> str:
    """Describe the score for people."""
    images, classes, threshold = (result[name] for name in ("images", "classes", "score_threshold"))
    rules = [f"{count} where {RULES[rule]}" for rule, count in images["matched_by"].items()]
    lines = [
        f"images         {images['annotated']} annotated, {images['labelled']} of them labelled",
        *(f"  known        {rule}" for rule in rules),
        *_missing_lines(images, result["only_labelled"]),
        f"classes        matched by {'name' if classes['matched_by'] == 'name' else 'number'}",
        *_class_name_lines("  never found  ", classes["annotated_not_labelled"]),
        *_class_name_lines("  not annotated", classes["labelled_not_annotated"]),
    ]
    if result["objects_left_out"]:
        lines.append(
            f"  left out     {result['objects_left_out']} objects of images or categories that the "
            "annotations do not list"
        )
    lines += ["", *_class_table(result["by_class"]), "", *_metric_lines(result["metrics"])]
    if threshold > 0:
        lines += [
            "",
            f"Of boxes that score {threshold:g} or more: OUTPUT holds no others, so this is less "
            "than the model's AP. For that, label into another OUTPUT with --score-threshold 0.",
        ]
    return "\n".join(lines)


def _missing_lines(images: dict[str, Any], only_labelled: bool) -> list[str]:
    count = "left out" if only_labelled else "count as images without detections"
    kinds = {
        "failed": f"annotated, but failed: {count}",
        "not_labelled": f"annotated, but not labelled: {count}",
        "not_annotated": "labelled, but not annotated: left out",
    }
    return [
        f"  {images[kind]:<12} {said} ({list_examples(images['examples'][kind], images[kind])})"
        for kind, said in kinds.items()
        if images[kind]
    ]


def _class_name_lines(title: str, names: Sequence[str]) -> list[str]:
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return [f"{title} {len(names)}: {shown}"] if names else []


def _class_table(classes: list[dict[str, Any]]) -> list[str]:
    """Make a table with a line for each class that is annotated or was detected."""
    shown = [one for one in classes if one["objects"] or one["detections"]]
    width = max([len(one["name"]) for one in shown] + [5])
    return [
        f"{'class':<{width}}  objects  detections      AP    AP50    AP75  AR_100",
        *(
            f"{one['name']:<{width}}  {one['objects']:>7}  {one['detections']:>10}  "
            + "  ".join(_format_metric(one[name]) for name in ("AP", "AP50", "AP75", "AR_100"))
            for one in sorted(shown, key=lambda one: -one["AP"])
        ),
    ]


def _metric_lines(metrics: dict[str, float]) -> list[str]:
    names = list(metrics)
    return [
        "   ".join(
            f"{name:<6} {_format_metric(metrics[name])}" for name in names[start : start + 6]
        )
        for start in (0, 6)
    ]


def _format_metric(value: float) -> str:
    return "     -" if value == UNKNOWN else f"{value:6.4f}"
