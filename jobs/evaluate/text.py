"""The text of `detr-batch evaluate`, for people."""

from collections.abc import Sequence
from typing import Any

from jobs.accounting.plurals import counted
from jobs.evaluate.annotated import RULES
from jobs.evaluate.average_precision import UNKNOWN
from jobs.report.text import list_examples

_CLASS_RULES = {"name": "name", "alike": "the letters and digits of their names", "id": "number"}


def as_text(result: dict[str, Any]) -> str:
    """Describe the score for people."""
    images, classes, threshold = (result[name] for name in ("images", "classes", "score_threshold"))
    rules = [f"{count} where {RULES[rule]}" for rule, count in images["matched_by"].items()]
    lines = [
        f"images         {images['annotated']} annotated, {images['labelled']} of them labelled",
        *(f"  known        {rule}" for rule in rules),
        *_missing_lines(images, result["only_labelled"]),
        f"classes        matched by {_CLASS_RULES[classes['matched_by']]}",
        *_respelt_lines(classes),
        *_class_name_lines("  renumbered   ", classes["renumbered"]),
        *_class_name_lines("  never found  ", classes["annotated_not_labelled"]),
        *_class_name_lines("  not annotated", classes["labelled_not_annotated"]),
        *_box_lines(result["boxes"], classes["matched_by"] == "id"),
        *_object_lines(result),
    ]
    lines += ["", *_class_table(result["by_class"]), "", *_metric_lines(result["metrics"])]
    if threshold > 0:
        lines += [
            "",
            f"Of boxes that score {threshold:g} or more: OUTPUT holds no others, so this is less "
            "than the model's AP. For that, label into another OUTPUT with --score-threshold 0.",
        ]
    return "\n".join(lines)


def _missing_lines(images: dict[str, Any], only_labelled: bool) -> list[str]:
    counts = "count as images without detections; --only-labelled leaves them out"
    count = "left out" if only_labelled else counts
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


def _respelt_lines(classes: dict[str, Any]) -> list[str]:
    lines = _class_name_lines("  other spelling", classes["respelt"])
    if classes["matched_by"] == "alike":
        return lines
    return [f"{line}: --by-name takes them for the same" for line in lines]


def _box_lines(boxes: dict[str, int], by_number: bool) -> list[str]:
    """Lines on boxes that are not evaluated, or that have no name to be known by."""
    nameless = "and are taken by their numbers" if by_number else "and are left out"
    kinds = {
        "suppressed": "in all of OUTPUT, are suppressed by others, and are left out",
        "not_annotated": "are of classes that are not annotated, and are left out",
        "without_name": f"have no class name, {nameless}",
        "not_usable": "have corners or scores that are no finite numbers, or end before they "
        "begin, and are left out",
    }
    said = [f"  {boxes[kind]:<12} {text}" for kind, text in kinds.items() if boxes[kind]]
    first = f"boxes          {boxes['of_annotated_images']} in annotated images"
    return [f"{first}, {boxes['evaluated']} of them evaluated", *said] if said else []


def _object_lines(result: dict[str, Any]) -> list[str]:
    """Lines on annotated objects that are left out, or that lack what COCO's numbers need."""
    lines = []
    if result["objects_left_out"]:
        left_out = counted(result["objects_left_out"], "object")
        lines.append(
            f"  left out     {left_out} of images or categories that the "
            f"annotations do not list; the first is {result['first_left_out']}"
        )
    if result["objects_without_area"]:
        lines.append(
            f"  areas        {counted(result['objects_without_area'], 'object')} without one: the "
            "sizes of their boxes say which are small, medium and large"
        )
    return ["objects", *lines] if lines else []


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
