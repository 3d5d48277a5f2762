"""What is told of a command and of its runs: the facts that messages and events are made of."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.accounting.node_hours import NodeMeter, Rates
from jobs.accounting.tally import Report, Tally
from jobs.output import paths
from pipeline.schema import OK
from pipeline.stages.publish import PartFile
from pipeline.storage.clock import steady_time
from pipeline.storage.files import join
from pipeline.storage.urls import mask

RUNNING, PUBLISHED, FAILED, INTERRUPTED = "running", "published", "failed", "interrupted"
# How a command ends, by its exit code.
DONE, NOTHING_NEW, ENDED = "done", "nothing_new", "ended_by_budget"
OUTCOMES = {1: FAILED, 2: "refused", 3: "too_many_failed", 4: ENDED}


@dataclass
class AnnouncedRun:
    """One run of the command. It changes while the run goes on."""

    run_id: str
    model: str
    fingerprint: str
    computation: str
    resumed: bool  # whether an earlier command began it
    objects: int  # images, archives and Parquet files that the run reads
    encoded_bytes: int
    state: str = RUNNING
    error: str | None = None
    # Fields of report.json; until the report is made, those that are known.
    figures: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[PartFile] = ()  # of the tables
    # Makes the figures of a run that has not ended.
    so_far: Callable[[], Mapping[str, Any]] = dict

    def publish(self, report: Report, files: Sequence[PartFile]) -> None:
        """The run has been committed."""
        self.state, self.figures, self.files = PUBLISHED, dict(report), files

    def fail(self, error: str, interrupted: bool) -> None:
        """The run has ended without a commit."""
        self.state, self.error = INTERRUPTED if interrupted else FAILED, error
        self.figures = self.so_far()

    def keep(self, limit: str) -> None:
        """A budget has ended the run before anything of it could be published."""
        self.fail(f"ended by {limit}", interrupted=True)
        self.figures = {**self.figures, "ended_by": limit}

    @property
    def is_ended_by_budget(self) -> bool:
        return "ended_by" in self.figures

    def images(self) -> Counter[str]:
        """The number of images by status. Of a run that failed: of those that it labelled."""
        failed: Mapping[str, int] = self.figures.get("failed", {})
        labelled = self.figures.get("images", 0) - sum(failed.values())
        return Counter({OK: labelled, **failed}) if self.figures.get("images") else Counter()


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    exit_code: int
    error: str | None = None  # one line, without secrets
    interrupted: bool = False


@dataclass(frozen=True)
class AnnouncedCommand:
    """A command that has ended, and its runs: none, one, or an unfinished one and a new one."""

    input: str  # as the user gave it
    output: str
    page: bool  # whether runs have a page
    runs: Sequence[AnnouncedRun]
    ending: Ending

    @property
    def outcome(self) -> str:
        """How it ended, in one word."""
        if self.ending.interrupted:
            return INTERRUPTED
        if self.ending.exit_code == 0 and any(run.is_ended_by_budget for run in self.runs):
            return ENDED  # --budget-exit-code 0
        if self.ending.exit_code == 0:
            return DONE if self.runs else NOTHING_NEW
        return OUTCOMES.get(self.ending.exit_code, FAILED)

    def images(self) -> Counter[str]:
        """The number of images by status, of all runs."""
        return sum((run.images() for run in self.runs), Counter())

    def total(self, figure: str) -> float | None:
        """The sum of a figure over the runs; None if no run knows it."""
        values = [run.figures.get(figure) for run in self.runs]
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    def page_of(self, run: AnnouncedRun) -> str | None:
        """The place of the run's page, without secrets; None if there is none."""
        if not self.page or run.state != PUBLISHED:
            return None
        return mask(join(self.output, paths.document(run.run_id, "report.html")))


def figures_so_far(tally: Tally, nodes: NodeMeter, rates: Rates) -> dict[str, Any]:
    """Fields of report.json of a run that has not ended. Asks no node."""
    node_hours, hours = nodes.so_far()
    cost = rates.bill(node_hours, hours)
    return {
        "images": tally.images,
        "failed": dict(tally.failed),
        "detections": tally.detections,
        "wall_seconds": steady_time() - tally.started,
        "images_per_second_steady": tally.steady_rate(),
        "encoded_bytes": tally.encoded_bytes,
        "node_hours": node_hours,
        "price_basis": None if cost is None else cost["basis"],
        "usd": None if cost is None else cost["usd"],
    }
