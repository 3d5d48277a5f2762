"""`detr-batch evaluate`: COCO's numbers of an OUTPUT's newest labels, without the model."""

import tempfile
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from jobs.coco.reader import read_annotations
from jobs.coco.records import Annotations
from jobs.evaluate.annotated import MatchedImages, matched_images
from jobs.evaluate.average_precision import Found, Score, average_precision
from jobs.evaluate.classes import ALIKE, NAMES, Label, MatchedClasses, matched_classes
from jobs.output.run_documents import score_threshold
from jobs.output.suppressed_boxes import hide_suppressed_boxes
from jobs.output.views import IS_USABLE, finished_runs
from jobs.query import answer_query
from pipeline.schema import OK
from pipeline.stages.box_rules import KEEP_ALL, BoxRules
from pipeline.storage.errors import InputError

NAMED = 5  # example names of missing images
_FOUND = f"""
SELECT position, class_id, score, x_min, y_min, x_max, y_max
FROM detections JOIN matched USING (run, shard, image_id)
    JOIN known ON known.label_id = detections.label_id
        AND known.label = coalesce(detections.label, '')
WHERE {IS_USABLE}
ORDER BY position, detection
"""
# Boxes of annotated images by what becomes of them.
_COUNTS = f"""
SELECT count(*), count(*) FILTER (NOT {IS_USABLE}),
    count(*) FILTER (trim(coalesce(detections.label, '')) = ''),
    count(*) FILTER (trim(coalesce(detections.label, '')) <> '' AND known.class_id IS NULL)
FROM detections JOIN matched USING (run, shard, image_id)
    LEFT JOIN known ON known.label_id = detections.label_id
        AND known.label = coalesce(detections.label, '')
"""
_LABELS = "SELECT DISTINCT label_id, coalesce(label, '') FROM latest ORDER BY ALL"


def evaluate(
    output: str,
    location: str,
    only_labelled: bool = False,
    match: str = NAMES,
    rules: BoxRules = KEEP_ALL,
) -> dict[str, Any]:
    """Score OUTPUT against the annotation file at `location`; return the score and its basis.

    An annotated image that failed or was not labelled counts as one without detections, unless
    `only_labelled` is set. `match` says how classes are matched: NAMES, ALIKE or NUMBERS. Boxes
    that others suppress by `rules` are left out.

    Raises InputError if the two have no images or no classes in common, or if there is no object to
    find.
    """
    truth = read_annotations(location)

    def score(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="detr-batch-") as scratch:
            hidden = hide_suppressed_boxes(connection, rules, scratch) if rules.suppress else 0
            result = _evaluate_output(output, truth, only_labelled, match, connection)
        result["boxes"]["suppressed"] = hidden
        return result

    return answer_query(output, score)


def _evaluate_output(
    output: str,
    truth: Annotations,
    only_labelled: bool,
    match: str,
    connection: duckdb.DuckDBPyConnection,
) -> dict[str, Any]:
    images = matched_images(connection, truth)
    labels = [Label(*row) for row in connection.sql(_LABELS).fetchall()]
    model = {name for run in finished_runs(output) for name in run["labels"]}
    classes = matched_classes(labels, sorted(model), truth.classes, match)
    connection.register("matched", images.table)
    connection.register("known", _known_classes(classes))
    ids = list(truth.images)
    status = dict(
        zip(*(images.table[name].to_pylist() for name in ("position", "status")), strict=True)
    )
    labelled = {ids[at] for at, said in status.items() if said == OK}
    _refuse_without_objects(truth, labelled, only_labelled)
    score = average_precision(
        truth, _read_detections(connection, truth), labelled if only_labelled else None
    )
    ((boxes, not_usable, nameless, of_others),) = connection.sql(_COUNTS).fetchall()
    runs = images.table["run"].unique().to_pylist()
    return {
        "images": _count_images(connection, truth, images, status, len(labelled)),
        "only_labelled": only_labelled,
        "classes": _describe_classes(classes, score),
        "boxes": {
            "of_annotated_images": boxes,
            "evaluated": sum(one.detections for one in score.classes),
            "not_usable": not_usable,
            "without_name": nameless,
            "not_annotated": of_others,
        },
        "objects_left_out": truth.left_out,
        "first_left_out": truth.of_unlisted_images.first or truth.of_unlisted_categories.first,
        "objects_without_area": sum(not one.has_area for one in truth.annotations),
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


def _refuse_without_objects(truth: Annotations, labelled: set[str], only_labelled: bool) -> None:
    """Raise InputError where no object could be found, so that there is no AP."""
    if not labelled:
        raise InputError(
            "no annotated image was labelled: all that OUTPUT holds of them failed, so there is "
            "nothing to evaluate"
        )
    objects = {one.image_id for one in truth.annotations if not one.iscrowd}
    if truth.left_out and not truth.annotations:
        first = truth.of_unlisted_images.first or truth.of_unlisted_categories.first
        raise InputError(
            f"the annotations hold no object to find: all {truth.left_out} are of images or "
            f"categories that the file does not list, the first is {first}"
        )
    if not objects:
        raise InputError("the annotations hold no object to find: there is no AP without one")
    if only_labelled and not objects & labelled:
        raise InputError(
            "no labelled image has an annotated object to find: evaluate without --only-labelled, "
            "or label the annotated images"
        )


def _known_classes(classes: MatchedClasses) -> pa.Table:
    """The labels that are classes of the annotations."""
    known = [
        {"label_id": label.label_id, "label": label.name, "class_id": class_id}
        for label, class_id in classes.ids.items()
    ]
    fields = [("label_id", pa.int32()), ("label", pa.string()), ("class_id", pa.int64())]
    return pa.Table.from_pylist(known, schema=pa.schema(fields))


def _read_detections(connection: duckdb.DuckDBPyConnection, truth: Annotations) -> Found:
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
        "matched_by": {NAMES: "name", ALIKE: "alike"}.get(classes.rule, "id"),
        "annotated_not_labelled": never,
        "labelled_not_annotated": classes.unknown,
        "respelt": classes.respelt,
        "renumbered": classes.renumbered,
    }
