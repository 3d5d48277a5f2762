"""The result of `detr-batch compare` as text for people."""

from collections.abc import Sequence
from typing import Any

from jobs.accounting.plurals import counted
from jobs.report.text import list_examples
from pipeline.storage.urls import printable

SHOWN = 10  # most class changes, and most images that differ, that are listed
CLASSES = 20  # most classes that are listed, those with the most differences
_COLUMNS = {
    "a": "a",
    "b": "b",
    "matched": "matched",
    "gone": "gone",
    "new": "new",
    "to_other_class": "class to",
    "from_other_class": "class from",
}


def as_text(result: dict[str, Any]) -> str:
    """Describe the comparison, one fact a line."""
    lines = [
        *(line for name in ("a", "b") for line in side_lines(name, result[name])),
        *filter(None, (describe_thresholds(result), describe_rules(result))),
        "",
        *image_lines(result["images"]),
        "",
        *box_lines(result["boxes"], result["iou"]),
        "",
        *_class_lines(result["by_class"]),
    ]
    changes = result["class_changes"]
    if changes:
        lines += ["", "classes that became another"]
        lines += [f"  {c['boxes']:>8}  {c['from']} -> {c['to']}" for c in changes[:SHOWN]]
        lines += [f"  and {len(changes) - SHOWN} more"] if len(changes) > SHOWN else []
    if result["most_different"]:
        lines += ["", "images that differ most   new  gone  class changed"]
        lines += [
            f"  {one['difference']:>16.2f}  {one['new']:>9}  {one['gone']:>4}  "
            f"{one['class_changed']:>13}  {one['image_b']}"
            for one in result["most_different"][:SHOWN]
        ]
    return "\n".join(lines)


def side_lines(name: str, side: dict[str, Any]) -> list[str]:
    """Describe where the labels of one side come from."""
    runs = side["runs"]
    newest = runs[-1] if len(runs) == 1 else f"{len(runs)} runs, the newest {runs[-1]}"
    return [
        f"{name}              {side['output']}",
        f"  labels       {newest}, of {', '.join(side['models'])}",
        f"  threshold    {threshold_of(side)}",
        *(f"  computed in  {computation}" for computation in side["computations"]),
        *(
            [f"  no name      {count} boxes, whose classes have no name, are not compared"]
            if (count := side["boxes_without_name"])
            else []
        ),
        *(
            [f"  not usable   {count} boxes, without finite scores and corners, are not compared"]
            if (count := side["boxes_not_usable"])
            else []
        ),
    ]


def threshold_of(side: dict[str, Any]) -> str:
    """Return the score thresholds of a side's runs in words."""
    values = _thresholds(side)
    words = [f"{value:g}" for value in sorted(value for value in values if value is not None)]
    return ", ".join([*words, *(["not known (imported)"] if None in values else [])])


def _thresholds(side: dict[str, Any]) -> set[float | None]:
    """Return the thresholds of a side; None is that of detections of other tools."""
    imported = side["imported_runs"]
    return {None if run in imported else value for run, value in side["score_thresholds"].items()}


def describe_thresholds(result: dict[str, Any]) -> str:
    """Return a sentence if the two sides have other score thresholds; else ""."""
    a, b = result["a"], result["b"]
    if _thresholds(a) == _thresholds(b):
        return ""
    differ = "may differ" if None in _thresholds(a) | _thresholds(b) else "differ"
    return (
        f"The score thresholds {differ}: {threshold_of(a)} in a, {threshold_of(b)} in b. A box of "
        "one side alone counts only from the threshold of the other side up."
    )


def describe_rules(result: dict[str, Any]) -> str:
    """Return a sentence if the boxes of the two sides were chosen by other options; else ""."""
    rules = [result[side]["box_rules"] for side in ("a", "b")]
    if rules[0] == rules[1]:
        return ""
    a, b = (" or ".join(one or "no options" for one in of_side) for of_side in rules)
    return printable(
        f"The options that choose boxes differ: {a} in a, {b} in b. Boxes that one side leaves "
        "out, or names otherwise, count as changes."
    )


def image_lines(images: dict[str, Any]) -> list[str]:
    """Describe the counts of images, with examples of those on one side only."""
    texts = {
        "failed_a": "failed in a alone",
        "failed_b": "failed in b alone",
        "failed_both": "failed in both",
        "only_a": "only in a",
        "only_b": "only in b",
        "crowded": "have too many boxes upon one another, and are not compared",
        "other_content": "are other files in b, by their ETag",
    }
    lines = [
        f"images         {images['a']} in a, {images['b']} in b; {images['compared']} compared",
        f"  unchanged    {images['unchanged']}: the same objects",
    ]
    for kind, words in texts.items():
        examples = images["examples"].get(kind)
        more = f" ({list_examples(examples, images[kind])})" if examples else ""
        lines += [f"  {images[kind]:<12} {words}{more}"] if images[kind] else []
    return lines


def box_lines(boxes: dict[str, Any], iou: float) -> list[str]:
    """Describe the counts of boxes in the compared images, and how boxes on both sides moved."""
    lines = [
        f"boxes          {boxes['a']} in a, {boxes['b']} in b",
        f"  matched      {boxes['matched']} of one class, with an IoU of {iou:g} or more",
        f"  class        {boxes['class_changed']} in one place, of another class",
        f"  gone         {boxes['gone']} only in a",
        f"  new          {boxes['new']} only in b",
    ]
    for side, other, kind in (("a", "b", "gone"), ("b", "a", "new")):
        if count := boxes[f"{kind}_below_threshold"]:
            lines.append(
                f"  not compared {count} only in {side}, below the threshold of {other}: "
                f"{other} would not have kept them"
            )
    if boxes["matched"]:
        lines += [
            f"score, b - a   {spread(boxes['score_drift'], '+.4f')}",
            f"IoU            {spread(boxes['iou'], '.4f')}",
        ]
    return lines


def spread(values: dict[str, float], form: str) -> str:
    """Format the mean and the quantiles of a drift."""
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())


def _class_lines(classes: Sequence[dict[str, Any]]) -> list[str]:
    shown = classes[:CLASSES]
    width = max([len(one["name"]) for one in shown] + [9])
    head = "".join(f"{words:>11}" for words in _COLUMNS.values())
    lines = [f"{'class':<{width}}{head}  score, b - a (p10, p50, p90)         IoU"]
    for one in shown:
        numbers = "".join(f"{one[name]:>11}" for name in _COLUMNS)
        drift, iou = one["score_drift"], one["iou"]
        if drift:
            mean, *quantiles = (f"{value:+.4f}" for value in drift.values())
            numbers += f"  {mean} ({', '.join(quantiles)})  {iou['mean']:.4f}"
        lines.append(f"{one['name']:<{width}}{numbers}")
    if more := len(classes) - len(shown):
        lines.append(f"and {counted(more, 'more class')}; --json has all")
    return lines
