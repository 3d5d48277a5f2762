"""report.html: the page that shows people what a run did, in one self-contained file."""

import shlex
import time
from dataclasses import dataclass
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, StrictUndefined

from jobs.accounting.estimate import accuracy, describe_source
from jobs.boxes.options import box_words
from jobs.output.manifest import Manifest
from jobs.output.run_documents import read_document
from jobs.report import charts
from jobs.report.captions import shorten_names
from jobs.report.facts import SURE, Facts, gather_facts
from jobs.report.imported import import_of_record
from jobs.report.pictures import PictureReader, Planned
from jobs.report.since import PER_IMAGES, Since, compare_with_last_run
from jobs.report.text import FILTERS, compare_with_reference, phases, stages
from jobs.report.tiles import Sheet, make_sheet
from pipeline.storage.files import open_location
from pipeline.storage.urls import mask


@dataclass(frozen=True)
class Contents:
    """All that the page of a run shows, but its report."""

    output: str
    manifest: Manifest
    record: dict[str, Any]  # run.json
    imported: bool
    facts: Facts
    sheet: Sheet  # the sample images
    since: Since | None


def gather_contents(
    output: str, manifest: Manifest, planned: Planned, reader: PictureReader
) -> Contents:
    """Read tables, images and earlier runs for the page of a run: the slow part of making it.

    `manifest` describes the run and need not be written yet. `reader` fetches the images that the
    page shows, within its time limits.
    """
    record = read_document(output, manifest["run_id"], "run.json")
    threshold = record["options"].get("score_threshold")
    imported = import_of_record(record)
    source = manifest["input"] if imported is None else imported.folder or ""
    if imported is None:
        facts = gather_facts(output, manifest, planned.archives, threshold)
    else:
        facts = gather_facts(output, manifest, [], threshold, imported.condition())
    return Contents(
        output,
        manifest,
        record,
        imported is not None,
        facts,
        make_sheet(facts.samples, source, planned, imported, reader),
        compare_with_last_run(output, manifest),
    )


def render_page(contents: Contents, report: dict[str, Any]) -> str:
    """Return the page as HTML. `report` is the run's report.json, also of an earlier version."""
    facts, run_id = contents.facts, contents.manifest["run_id"]
    threshold = contents.record["options"].get("score_threshold")
    template = environment("jobs.report").get_template("page.html.j2")
    return template.render(
        run_id=run_id,
        manifest=contents.manifest,
        record=contents.record,
        report=report,
        imported=contents.imported,
        facts=facts,
        sheet=contents.sheet,
        since=contents.since,
        per_images=PER_IMAGES,
        names=shorten_names(
            (name for failure in facts.failures for name, _ in failure.samples),
            [contents.manifest["input"]],
        ),
        failures_query=_make_failures_query(contents.output, run_id),
        charts=_draw_charts(report, facts, threshold),
        threshold=threshold,
        boxes=" ".join(box_words(contents.record["options"])),
        sure=SURE,
        comparison=compare_with_reference(report.get("usd_per_1000_images")),
        nodes=(report.get("cost") or {}).get("nodes"),
        off=accuracy(report),
        estimated_by=describe_source(report["estimate"]) if report.get("estimate") else "",
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


def _make_failures_query(output: str, run_id: str) -> str:
    """Return the command for a shell that lists all failures of a run, from any folder."""
    fs, path = open_location(output, "OUTPUT")
    place = path if isinstance(fs, LocalFileSystem) else mask(output)
    sql = (
        "SELECT status, image_id, error FROM images "
        f"WHERE run = '{run_id}' AND status <> 'ok' ORDER BY ALL"
    )
    return f'detr-batch query {shlex.quote(place)} "{sql}" --out failures.csv'


def _draw_charts(report: dict[str, Any], facts: Facts, threshold: float | None) -> dict[str, str]:
    """Draw the charts as SVG, by name; "" where the report has no figures for one."""
    points = report.get("timeline") or []
    steady, cpus = report.get("images_per_second_steady"), report.get("cpus")
    several = len(points) > 2 and not report.get("imported")
    return {
        "wide": charts.over_time(points, steady, cpus, charts.WIDE) if several else "",
        "narrow": charts.over_time(points, steady, cpus, charts.NARROW) if several else "",
        "scores": charts.scores(facts.scores, threshold) if sum(facts.scores) else "",
    }
