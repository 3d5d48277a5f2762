"""What changed since the last run, for the page of a run: rates, failures and classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.accounting.figures import format_figure, format_number
from jobs.output.catalog import read_catalog
from jobs.output.errors import DamagedOutput
from jobs.output.manifest import Manifest
from jobs.output.run_documents import score_threshold
from jobs.output.views import CannotRead, connect, explain_query_errors
from jobs.report.facts import SURE, count_classes
from jobs.report.reports import read_report
from pipeline.schema import OK
from pipeline.storage.urls import mask

CLASSES = 6  # most classes that are listed, those that changed most
REASONS = 4  # most reasons of failures that are listed
PER_IMAGES = 100  # boxes of a class are counted for so many labelled images
SAME = 0.005  # relative change of a figure below which it is said to be the same


@dataclass(frozen=True)
class Figure:
    """One figure of two runs."""

    name: str
    before: str
    now: str
    change: str  # in words
    size: float = 0.0  # of the change


@dataclass(frozen=True)
class Since:
    """The last run before a run, and what changed since."""

    run_id: str
    input: str  # INPUT of the last run, if it was another; else ""
    report: dict[str, Any] | None  # of the last run; None if it is damaged
    classes: list[Figure]  # boxes of a class for PER_IMAGES images
    least: float  # least score of the boxes in `classes`
    why: str  # why some figures are missing; "" where all are there

    def figures(self, report: Mapping[str, Any]) -> list[Figure]:
        """Compare images, rates and failures of the last run with those of this run's `report`."""
        return [] if self.report is None else _compare_reports(self.report, report)


def compare_with_last_run(output: str, manifest: Manifest) -> Since | None:
    """Compare a run, which need not be committed yet, with the last one; None for a first run.

    The last run is the newest earlier one over the same INPUT, or over any other if there is none.
    Damage to its documents or tables is reported and does not stop the page of this run.
    """
    catalog = read_catalog(output)
    earlier = [run for run in catalog.labelling_runs() if run["run_id"] < manifest["run_id"]]
    if not earlier:
        return None
    last = ([run for run in earlier if run["input"] == manifest["input"]] or earlier)[-1]
    report: dict[str, Any] | None = None
    classes: list[Figure] = []
    least, why = SURE, ""
    try:
        report = read_report(output, last["run_id"])
        if last["run_id"] in catalog.state.counting_runs():
            least = max(SURE, *(score_threshold(output, run["run_id"]) for run in (last, manifest)))
            classes = _compare_classes(output, last, manifest, least)
        else:
            why = "its tables were merged or replaced, so that its classes cannot be counted"
    except (DamagedOutput, CannotRead) as error:
        why = mask(str(error))
    other = "" if last["input"] == manifest["input"] else last["input"]
    return Since(last["run_id"], other, report, classes, least, why)


def _compare_reports(last: Mapping[str, Any], report: Mapping[str, Any]) -> list[Figure]:
    figures = [Figure("Images", format_number(last["images"]), format_number(report["images"]), "")]
    for name, words in (
        ("images_per_second", "Images per second"),
        ("images_per_second_steady", "after start-up"),
    ):
        before, now = last.get(name), report.get(name)
        if before and now:
            change = _describe_change(before, now, "faster", "slower")
            figures.append(Figure(words, format_figure(before), format_figure(now), change))
    failed = [sum(one["failed"].values()) for one in (last, report)]
    if any(failed):
        figures.append(
            _compare_shares("Failed", _share(failed[0], last), _share(failed[1], report))
        )
    reasons = [
        _compare_shares(reason, _share(last["failed"].get(reason, 0), last), _share(count, report))
        for reason, count in (dict.fromkeys(last["failed"], 0) | report["failed"]).items()
    ]
    return figures + sorted(reasons, key=lambda one: -one.size)[:REASONS]


def _share(images: int, report: Mapping[str, Any]) -> float:
    """Return a number of images as per cent of all images of a run."""
    return 100 * images / (report["images"] or 1)


def _compare_shares(name: str, before: float, now: float) -> Figure:
    difference = abs(now - before)
    words = f"{format_figure(difference)} points {'more' if now > before else 'fewer'}"
    return Figure(
        name,
        f"{format_figure(before)} %",
        f"{format_figure(now)} %",
        "the same" if difference < SAME else words,
        difference,
    )


def _compare_classes(output: str, last: Manifest, manifest: Manifest, least: float) -> list[Figure]:
    """Compare how many boxes PER_IMAGES labelled images have of each class, most changed first."""
    before, now = (_boxes_by_class(output, run, least) for run in (last, manifest))
    figures = []
    for label in sorted({**before, **now}):
        a, b = before.get(label, 0.0), now.get(label, 0.0)
        if a or b:
            change = _describe_change(a, b, "more", "fewer")
            figures.append(Figure(label, format_figure(a), format_figure(b), change, abs(b - a)))
    return sorted(figures, key=lambda one: -one.size)[:CLASSES]


def _boxes_by_class(output: str, run: Manifest, least: float) -> dict[str, float]:
    images = run["images"].get(OK, 0) or 1
    with explain_query_errors(output), connect(output, [run]) as tables:
        return {one.label: PER_IMAGES * one.sure / images for one in count_classes(tables, least)}


def _describe_change(before: float, now: float, more: str, less: str) -> str:
    """Describe a change in words; `more` is a word such as "faster", `less` its opposite."""
    if not before:
        return "new"
    if not now:
        return "gone"
    change = now / before - 1
    if abs(change) < SAME:
        return "the same"
    if change >= 1:
        return f"{now / before:.1f} times as {'many' if more == 'more' else 'fast'}"
    return f"{100 * abs(change):.0f} % {more if change > 0 else less}"
