"""What changed since the last run, for the page of a run: rates, failures and classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.accounting.figures import format_figure, format_number
from jobs.boxes.options import option_of, word_of
from jobs.output.catalog import Catalog, read_catalog
from jobs.output.errors import DamagedOutput
from jobs.output.manifest import Manifest
from jobs.output.run_documents import recorded_choices, score_threshold
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
    rules: list[str]  # options that chose boxes and differ, in words
    classes: list[Figure]  # boxes of a class for PER_IMAGES images
    least: float  # least score of the boxes in `classes`
    why: str  # why some figures are missing; "" where all are there

    def figures(self, report: Mapping[str, Any]) -> list[Figure]:
        """Compare images, rates and failures of the last run with those of this run's `report`."""
        return [] if self.report is None else _compare_reports(self.report, report)


def compare_with_last_run(output: str, manifest: Manifest) -> Since | None:
    """Compare a run, which need not be committed yet, with the last one; None for a first run.

    The last run is the newest earlier one over the same INPUT, or over any other if there is none.
    It may be one that this run replaced, whose report stays and whose tables are gone. Damage to
    its documents or tables is reported and does not stop the page of this run.
    """
    catalog = read_catalog(output)
    last = _find_last_run(catalog, manifest)
    if last is None:
        return None
    report: dict[str, Any] | None = None
    rules: list[str] = []
    classes: list[Figure] = []
    least, why = SURE, ""
    try:
        report = read_report(output, last.run_id)
        rules = _compare_rules(output, last.run_id, manifest["run_id"])
        if last.manifest is None:
            why = "this run replaced its tables, so that its classes cannot be counted any more"
        elif last.run_id in catalog.state.counting_runs():
            ids = (last.run_id, manifest["run_id"])
            least = max(SURE, *(score_threshold(output, run_id) for run_id in ids))
            classes = _compare_classes(output, last.manifest, manifest, least)
        else:
            why = "`compact` merged its tables, so that its classes cannot be counted"
    except (DamagedOutput, CannotRead) as error:
        why = mask(str(error))
    other = "" if last.input == manifest["input"] else last.input
    return Since(last.run_id, other, report, rules, classes, least, why)


@dataclass(frozen=True)
class _LastRun:
    run_id: str
    input: str
    manifest: Manifest | None  # None if OUTPUT holds its labels no more


def _find_last_run(catalog: Catalog, manifest: Manifest) -> _LastRun | None:
    runs = [_LastRun(run["run_id"], run["input"], run) for run in catalog.labelling_runs()]
    # A run replaces runs over the same INPUT alone.
    gone = [_LastRun(one, manifest["input"], None) for one in catalog.runs_replaced_by(manifest)]
    earlier = [run for run in (*runs, *gone) if run.run_id < manifest["run_id"]]
    same = [run for run in earlier if run.input == manifest["input"]]
    return max(same or earlier, key=lambda run: run.run_id, default=None)


def _compare_rules(output: str, last: str, run_id: str) -> list[str]:
    """Describe the options that chose boxes of both runs and that differ."""
    before, now = (recorded_choices(output, one) for one in (last, run_id))
    return [
        f"{option_of(name)} {_describe_value('was', before.get(name))} and "
        f"{_describe_value('is', now.get(name))}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def _describe_value(verb: str, value: str | float | None) -> str:
    return f"{verb} {'not given' if value is None else word_of(value)}"


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
