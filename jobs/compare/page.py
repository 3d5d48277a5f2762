"""The page of `detr-batch compare`: what changed, with the images that differ most."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jobs.compare.changed_images import MATCHED
from jobs.compare.text import describe_rules, describe_thresholds, threshold_of
from jobs.output.catalog import committed_runs
from jobs.report.captions import shorten_names
from jobs.report.drawing import Box, data_uri, draw_boxes
from jobs.report.imported import read_import
from jobs.report.page import environment
from jobs.report.pictures import FetchedImage, PictureReader, Place, read_plan_of_run
from pipeline.schema import Shard

# Each is light enough for black text, and people who cannot see red or green can tell them apart.
COLOURS = {"a": "#ffb454", "b": "#7cc8ff", "both": "#f4f4f2"}
MOVED = 0.1  # least change of a score that is written out; images that differ by less are not shown
BOXES_DRAWN = 80  # most boxes drawn on one image, changed boxes first
WORDS = 8  # most boxes of one image that have text; more text would hide the image
CLASSES = 20  # classes with the most differences, which are shown; the others fold out
CLASS_CHANGES = 12


def page_of(result: dict[str, Any], reader: PictureReader) -> str:
    """Render a comparison that was made `with_boxes` as self-contained HTML."""
    templates = environment("jobs.compare")
    templates.filters["signed"] = lambda value: f"{value:+.3f}" if abs(value) >= 5e-4 else "0"
    return templates.get_template("page.html.j2").render(
        result=result,
        images=result["images"],
        boxes=result["boxes"],
        thresholds={side: threshold_of(result[side]) for side in ("a", "b")},
        differences=[*filter(None, (describe_thresholds(result), describe_rules(result)))],
        classes=result["by_class"][:CLASSES],
        other_classes=result["by_class"][CLASSES:],
        class_changes=result["class_changes"][:CLASS_CHANGES],
        tiles=_make_tiles(result, reader),
        colours=COLOURS,
        moved=MOVED,
        made_at=time.time(),
    )


def _make_tiles(result: dict[str, Any], reader: PictureReader) -> list[dict[str, Any]]:
    """Make one tile for each image; the image comes from side b, or else from side a."""
    different = [one for one in result["most_different"] if one["difference"] >= MOVED]
    fetched = _fetch_images(result, different, "b", reader)
    missing = [i for i, image in enumerate(fetched) if image.pixels is None]
    again = _fetch_images(result, [different[i] for i in missing], "a", reader)
    sides = ["b"] * len(different)
    for i, image in zip(missing, again, strict=True):
        if image.pixels is not None:
            fetched[i], sides[i] = image, "a"
    names = shorten_names((one["image_b"] for one in different), _list_inputs(result["b"]))
    return [
        _make_tile(one, names[one["image_b"]], image, side)
        for one, image, side in zip(different, fetched, sides, strict=True)
    ]


def _list_inputs(side: dict[str, Any]) -> list[str]:
    """List where the images of one side lie."""
    output = side["output"]
    imports = [read_import(output, run) for run in side["imported_runs"]]
    folders = [one.folder for one in imports if one is not None and one.folder]
    return [run["input"] for run in committed_runs(output)] + folders


def _make_tile(one: dict[str, Any], name: str, image: FetchedImage, side: str) -> dict[str, Any]:
    tile = {"image": one, "name": name, "said": _describe_changes(one)}
    if image.pixels is None:
        return {**tile, "ratio": 1.5, "source": "", "why": image.why}
    rows, columns = image.pixels.shape[:2]
    boxes = [_box_to_draw(box) for box in one["boxes"][:BOXES_DRAWN]]
    worded = [i for i, box in enumerate(boxes) if box.text]
    boxes = [replace(box, text="") if i in worded[WORDS:] else box for i, box in enumerate(boxes)]
    source = data_uri(draw_boxes(image.pixels, tuple(one["places"][side]["size"]), boxes))
    ratio = min(2.5, max(0.5, columns / rows))
    return {**tile, "ratio": ratio, "source": source, "why": ""}


def _describe_changes(one: dict[str, Any]) -> str:
    """Describe what changed in an image."""
    counts = {"gone": "gone", "new": "new", "class_changed": "of another class"}
    said = ", ".join(f"{one[name]:,} {words}" for name, words in counts.items() if one[name])
    return said or "the same objects, with other scores"


def _box_to_draw(box: dict[str, Any]) -> Box:
    """Return the box to draw; a box that did not change has no text."""
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


def _fetch_images(
    result: dict[str, Any], images: Sequence[dict[str, Any]], side: str, reader: PictureReader
) -> list[FetchedImage]:
    """Fetch images by the plans of the runs that labelled them on one side."""
    places = [one["places"][side] for one in images]
    found = _find_places(result[side]["output"], places)
    fetched = iter(reader.fetch([place for place in found if place is not None]))
    unknown = FetchedImage(None, "no run that read it is on either side")
    return [unknown if place is None else next(fetched) for place in found]


def _find_places(output: str, images: Sequence[dict[str, Any]]) -> list[Place | None]:
    """Find where images are; None for those of imported runs that cannot be found by their name."""
    runs = {image["run"] for image in images}
    imported = {run: read_import(output, run) for run in runs}
    planned: dict[tuple[str, str], Shard] = {}
    for run in runs:
        names = sorted({image["shard"] for image in images if image["run"] == run})
        try:
            shards = read_plan_of_run(output, run).find(names)
        except FileNotFoundError:
            continue
        planned.update({(run, name): shard for name, shard in shards.items()})
    places: list[Place | None] = []
    for image in images:
        origin, shard = imported[image["run"]], planned.get((image["run"], image["shard"]))
        index = image["index"]
        if origin is not None:
            shard, index = origin.shard(image["uri"]), 0
        places.append(None if shard is None else Place(shard, index))
    return places
