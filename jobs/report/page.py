"""report.html: the page that shows people what a run did, in one self-contained file."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, StrictUndefined

from jobs.accounting.estimate import accuracy
from jobs.output.manifest import Manifest
from jobs.output.run_documents import read_document
from jobs.report import charts
from jobs.report.facts import DRAWN, KINDS, SURE, Facts, Shown, gather_facts
from jobs.report.pictures import (
    Box,
    FetchedImage,
    PictureReader,
    Place,
    Planned,
    data_uri,
    draw_boxes,
)
from jobs.report.text import FILTERS, compare_with_reference, phases, stages

# People can tell these colours apart on any photo, and black text is readable on each.
COLOURS = (
    "#ffd166", "#7bdff2", "#ff9b85", "#b8f2a0", "#d9b8ff",
    "#ffb3d1", "#9ad1ff", "#f0e68c", "#8ef0c9", "#ffc49b",
)  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """An image of the page: a JPEG as a URL, or the reason why there is none."""

    shown: Shown
    ratio: float  # width divided by height, limited to 0.5 to 2.5
    source: str  # data URL of the JPEG; "" where there is none
    why: str  # why there is no JPEG; "" where there is one


def page_of(
    output: str,
    manifest: Manifest,
    report: dict[str, Any],
    planned: Planned,
    reader: PictureReader,
) -> str:
    """Return the page of one run as HTML.

    `manifest` describes the run and need not be written yet. `report` is the run's report.json,
    of this version or an earlier one. `reader` fetches the images that the page shows, within
    its time limits.
    """
    record = read_document(output, manifest["run_id"], "run.json")
    threshold = record["options"].get("score_threshold")
    facts = gather_facts(output, manifest, planned.archives, threshold)
    tiles = _fetch_tiles(facts.shown, planned, reader)
    template = environment("jobs.report").get_template("page.html.j2")
    return template.render(
        run_id=manifest["run_id"],
        manifest=manifest,
        record=record,
        report=report,
        facts=facts,
        groups=_group_tiles(tiles),
        charts=_draw_charts(report, facts, threshold),
        threshold=threshold,
        sure=SURE,
        drawn=DRAWN if threshold is None else max(DRAWN, threshold),
        comparison=compare_with_reference(report.get("usd_per_1000_images")),
        nodes=(report.get("cost") or {}).get("nodes"),
        off=accuracy(report),
        phases=phases(report),
        stages=stages(report),
        made_at=time.time(),
    )


def environment(package: str) -> Environment:
    """Load the templates of a package, and those of this package as "report/..."."""
    shared = PrefixLoader({"report": PackageLoader("jobs.report", ".")})
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), shared]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS)
    return made


def _draw_charts(report: dict[str, Any], facts: Facts, threshold: float | None) -> dict[str, str]:
    """Draw the charts as SVG, by name; "" where the report has no figures for one."""
    points = report.get("timeline") or []
    steady, cpus = report.get("images_per_second_steady"), report.get("cpus")
    several = len(points) > 2
    return {
        "wide": charts.over_time(points, steady, cpus, charts.WIDE) if several else "",
        "narrow": charts.over_time(points, steady, cpus, charts.NARROW) if several else "",
        "scores": charts.scores(facts.scores, threshold) if sum(facts.scores) else "",
    }


def _fetch_tiles(shown: Sequence[Shown], planned: Planned, reader: PictureReader) -> list[Tile]:
    shards = planned.find(sorted({one.shard for one in shown}))
    places = [Place(shards[one.shard], one.index) for one in shown if one.shard in shards]
    fetched = iter(reader.fetch(places))
    unknown = FetchedImage(None, "no run that read it is known")
    tiles = []
    for one in shown:
        image = next(fetched) if one.shard in shards else unknown
        if image.pixels is None:
            tiles.append(Tile(one, 1.5, "", image.why))
        else:
            boxes = [_box_to_draw(box) for box in one.boxes]
            rows, columns = image.pixels.shape[:2]
            ratio = min(2.5, max(0.5, columns / rows))
            source = data_uri(draw_boxes(image.pixels, one.size, boxes))
            tiles.append(Tile(one, ratio, source, ""))
    return tiles


def _box_to_draw(box: dict[str, Any]) -> Box:
    corners = (box["x_min"], box["y_min"], box["x_max"], box["y_max"])
    colour = COLOURS[box["label_id"] % len(COLOURS)]
    return Box(corners, f"{box['label']} {box['score']:.2f}", colour)


def _group_tiles(tiles: list[Tile]) -> list[tuple[str, list[Tile]]]:
    """Group the tiles under their headings, in the order of KINDS; empty groups are left out."""
    groups = [
        (heading, [tile for tile in tiles if tile.shown.kind == kind])
        for kind, (heading, _, _) in KINDS.items()
    ]
    return [(heading, members) for heading, members in groups if members]
