"""report.html: what a run did, for people, in one file that needs nothing else."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, StrictUndefined

from jobs.accounting.estimate import accuracy
from jobs.output.manifest import Manifest
from jobs.output.records import read_document
from jobs.report import charts
from jobs.report.facts import DRAWN, KINDS, SURE, Facts, Shown, gather_facts
from jobs.report.pictures import Box, Picture, PictureReader, Place, Planned, data_uri, draw_boxes
from jobs.report.text import FILTERS, compare_with_reference, phases, stages

# Told apart on any photo, and light enough for black text.
COLOURS = (
    "#ffd166", "#7bdff2", "#ff9b85", "#b8f2a0", "#d9b8ff",
    "#ffb3d1", "#9ad1ff", "#f0e68c", "#8ef0c9", "#ffc49b",
)  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """A picture of the sheet: a JPEG as a URL, or why there is none."""

    shown: Shown
    ratio: float  # width by height, within bounds
    source: str
    why: str


def page_of(
    output: str,
    manifest: Manifest,
    report: dict[str, Any],
    planned: Planned,
    pictures: PictureReader,
) -> str:
    """The page of one run as HTML, by its manifest, which need not be written yet.

    `report` is its report.json, of this version or an earlier one; `pictures` fetches what is
    shown, within its bounds of time.
    """
    record = read_document(output, manifest["run_id"], "run.json")
    threshold = record["options"].get("score_threshold")
    facts = gather_facts(output, manifest, planned.archives, threshold)
    tiles = _tiles(facts.shown, planned, pictures)
    template = environment("jobs.report").get_template("page.html.j2")
    return template.render(
        run_id=manifest["run_id"],
        manifest=manifest,
        record=record,
        report=report,
        facts=facts,
        groups=_groups(tiles),
        charts=_charts(report, facts, threshold),
        threshold=threshold,
        sure=SURE,
        draw_boxes=DRAWN if threshold is None else max(DRAWN, threshold),
        comparison=compare_with_reference(report.get("usd_per_1000_images")),
        nodes=(report.get("cost") or {}).get("nodes"),
        off=accuracy(report),
        phases=phases(report),
        stages=stages(report),
        made_at=time.time(),
    )


def environment(package: str) -> Environment:
    """The templates of a package, and those of this one, as "report/..."."""
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


def _charts(report: dict[str, Any], facts: Facts, threshold: float | None) -> dict[str, str]:
    """SVG by name; "" where the report has no figures for it."""
    points = report.get("timeline") or []
    steady, cpus = report.get("images_per_second_steady"), report.get("cpus")
    several = len(points) > 2
    return {
        "wide": charts.over_time(points, steady, cpus, charts.WIDE) if several else "",
        "narrow": charts.over_time(points, steady, cpus, charts.NARROW) if several else "",
        "scores": charts.scores(facts.scores, threshold) if sum(facts.scores) else "",
    }


def _tiles(shown: Sequence[Shown], planned: Planned, pictures: PictureReader) -> list[Tile]:
    shards = planned.find(sorted({one.shard for one in shown}))
    places = [Place(shards[one.shard], one.index) for one in shown if one.shard in shards]
    fetched = iter(pictures.fetch(places))
    unknown = Picture(None, "no run that read it is known")
    tiles = []
    for one in shown:
        picture = next(fetched) if one.shard in shards else unknown
        if picture.pixels is None:
            tiles.append(Tile(one, 1.5, "", picture.why))
        else:
            boxes = [_box(box) for box in one.boxes]
            rows, columns = picture.pixels.shape[:2]
            ratio = min(2.5, max(0.5, columns / rows))
            source = data_uri(draw_boxes(picture.pixels, one.size, boxes))
            tiles.append(Tile(one, ratio, source, ""))
    return tiles


def _box(box: dict[str, Any]) -> Box:
    corners = (box["x_min"], box["y_min"], box["x_max"], box["y_max"])
    colour = COLOURS[box["label_id"] % len(COLOURS)]
    return Box(corners, f"{box['label']} {box['score']:.2f}", colour)


def _groups(tiles: list[Tile]) -> list[tuple[str, list[Tile]]]:
    """Tiles under their headings, in the order of KINDS; none that is empty."""
    groups = [
        (heading, [tile for tile in tiles if tile.shown.kind == kind])
        for kind, (heading, _, _) in KINDS.items()
    ]
    return [(heading, members) for heading, members in groups if members]
