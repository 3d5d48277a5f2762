"""The page of `detr-batch compare`: what changed, with the images that differ most."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jobs.compare.changed_images import MATCHED
from jobs.compare.text import threshold_of
from jobs.report.page import environment
from jobs.report.pictures import (
    Box,
    Picture,
    PictureReader,
    Place,
    data_uri,
    draw_boxes,
    read_plan_of_run,
)
from pipeline.schema import Shard

# Light enough for black text, and told apart by who sees no red or no green.
COLOURS = {"a": "#ffb454", "b": "#7cc8ff", "both": "#f4f4f2"}
MOVED = 0.1  # scores that moved by this much are written, and images that differ as much are shown
BOXES_DRAWN = 80  # of an image, changes first
WORDS = 8  # beside so many boxes of an image: more hide it
CLASSES = 20  # told one by one: those with most changes
CLASS_CHANGES = 12


def page_of(result: dict[str, Any], pictures: PictureReader) -> str:
    """The page of a comparison `with_boxes`, as HTML that needs nothing else."""
    classes = sorted(
        result["by_class"],
        key=lambda one: (-one["gone"] - one["new"] - one["to_other_class"], one["name"]),
    )
    templates = environment("jobs.compare")
    templates.filters["signed"] = lambda value: f"{value:+.3f}" if abs(value) >= 5e-4 else "0"
    return templates.get_template("page.html.j2").render(
        result=result,
        images=result["images"],
        boxes=result["boxes"],
        thresholds={side: threshold_of(result[side]) for side in ("a", "b")},
        classes=classes[:CLASSES],
        other_classes=len(classes) - len(classes[:CLASSES]),
        class_changes=result["class_changes"][:CLASS_CHANGES],
        tiles=_tiles(result, pictures),
        colours=COLOURS,
        moved=MOVED,
        made_at=time.time(),
    )


def _tiles(result: dict[str, Any], pictures: PictureReader) -> list[dict[str, Any]]:
    """A tile an image, with its picture as b has it, or else as a has it."""
    different = [one for one in result["most_different"] if one["difference"] >= MOVED]
    fetched = _fetched(result, different, "b", pictures)
    missing = [i for i, picture in enumerate(fetched) if picture.pixels is None]
    again = _fetched(result, [different[i] for i in missing], "a", pictures)
    sides = ["b"] * len(different)
    for i, picture in zip(missing, again, strict=True):
        if picture.pixels is not None:
            fetched[i], sides[i] = picture, "a"
    return [
        _tile(one, picture, side)
        for one, picture, side in zip(different, fetched, sides, strict=True)
    ]


def _tile(one: dict[str, Any], picture: Picture, side: str) -> dict[str, Any]:
    if picture.pixels is None:
        return {"image": one, "said": _said(one), "ratio": 1.5, "source": "", "why": picture.why}
    rows, columns = picture.pixels.shape[:2]
    boxes = [_box(box) for box in one["boxes"][:BOXES_DRAWN]]
    worded = [i for i, box in enumerate(boxes) if box.text]
    boxes = [replace(box, text="") if i in worded[WORDS:] else box for i, box in enumerate(boxes)]
    source = data_uri(draw_boxes(picture.pixels, tuple(one["places"][side]["size"]), boxes))
    ratio = min(2.5, max(0.5, columns / rows))
    return {"image": one, "said": _said(one), "ratio": ratio, "source": source, "why": ""}


def _said(one: dict[str, Any]) -> str:
    """What changed in an image."""
    counts = {"gone": "gone", "new": "new", "class_changed": "of another class"}
    said = ", ".join(f"{one[name]:,} {words}" for name, words in counts.items() if one[name])
    return said or "the same objects, with other scores"


def _box(box: dict[str, Any]) -> Box:
    """A box to draw: what did not change has no words."""
    text = f"{box['label']} {box['score']:.2f}"
    if box["change"] != MATCHED:
        return Box(tuple(box["corners"]), text, COLOURS[box["side"]])
    moved = abs(box["score"] - box["score_a"]) >= MOVED
    text = (
        f"{box['label']} {box['score_a']:.2f} \N{RIGHTWARDS ARROW} {box['score']:.2f}"
        if moved
        else ""
    )
    return Box(tuple(box["corners"]), text, COLOURS["both"])


def _fetched(
    result: dict[str, Any], images: Sequence[dict[str, Any]], side: str, pictures: PictureReader
) -> list[Picture]:
    """The pictures of images, by the plans of the runs that labelled them on one side."""
    places = [one["places"][side] for one in images]
    shards = _shards(result[side]["output"], places)
    known = [place for place in places if (place["run"], place["shard"]) in shards]
    found = iter(pictures.fetch([Place(shards[p["run"], p["shard"]], p["index"]) for p in known]))
    unknown = Picture(None, "no run that read it is on either side")
    return [next(found) if place in known else unknown for place in places]


def _shards(output: str, places: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Shard]:
    """What opens the shards of images, by run and name; nothing does for labels of other tools."""
    found: dict[tuple[str, str], Shard] = {}
    for run in {place["run"] for place in places}:
        names = sorted({place["shard"] for place in places if place["run"] == run})
        try:
            shards = read_plan_of_run(output, run).find(names)
        except FileNotFoundError:
            continue
        found.update({(run, name): shard for name, shard in shards.items()})
    return found
