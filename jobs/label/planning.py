"""Plan which images a run labels. Nothing here writes; run_record.py writes the plan."""

from dataclasses import dataclass

import pyarrow.compute as pc

from jobs.accounting.estimate import Estimate, as_text
from jobs.label.options import LabelOptions
from jobs.output import paths
from jobs.output.run_ids import new_run_id
from pipeline.plan.digests import Known
from pipeline.plan.plan import Plan, left_out_as_text, plan_shards
from pipeline.plan.shards import Shards
from pipeline.storage.files import join

KINDS = (("files", "image files"), ("tar", "tar shards"), ("parquet", "Parquet"))


@dataclass(frozen=True)
class PlanRequest:
    """The images that a command is to label."""

    input: str  # INPUT as the user gave it, secrets included
    format: str
    limit: int | None
    output: str  # OUTPUT; the listing leaves it out if it lies below INPUT
    device: str  # --device and --precision: an unfinished run with others is another one
    precision: str


def plan_request(options: LabelOptions) -> PlanRequest:
    """The images that the options of a command name."""
    return PlanRequest(
        options.input,
        options.format,
        options.limit,
        options.output,
        options.device,
        options.precision,
    )


@dataclass(frozen=True)
class Run:
    """A planned run, new or resumed. A resumed run keeps its device and its precision."""

    run_id: str
    shards: Shards
    device: str = "auto"  # "cpu" or "cuda" once the run began
    precision: str = "auto"  # "fp32", "bf16" or "fp16" once the run began
    retries_failed: bool = False  # whether it labels again what failed (--retry-failed)


def plan_url(output: str, run_id: str) -> str:
    """The URL of the plan of an unfinished run. A finished run has a plan beside its manifest."""
    return join(output, paths.plan_under_way(run_id))


def plan_images(request: PlanRequest, known: Known) -> Plan:
    """Plan the images under INPUT that are not `known`."""
    return plan_shards(request.input, request.format, request.limit, known, request.output)


def make_run(output: str, shards: Shards) -> Run:
    """A run with a new run id over planned shards."""
    return Run(new_run_id(output), shards)


def plan_as_text(found: Plan, estimate: Estimate | None, placement: str) -> str:
    """The text that --dry-run prints: the plan, its estimate, and its placement."""
    lines = []
    for kind, name in KINDS:
        outline = found.shards.outline
        shards = outline.filter(pc.equal(outline["kind"], kind))
        objects, size = (pc.sum(shards[column]).as_py() or 0 for column in ("objects", "size"))
        lines.append(f"{name:<14} {objects} in {len(shards)} shards, {size / 1e6:.1f} MB")
    lines += [
        f"{'known':<14} {found.known} objects that OUTPUT holds already",
        f"{'changed':<14} {found.changed} objects that OUTPUT holds an older version of",
        f"{'again':<14} {found.again} objects that failed or are relabelled",
        f"{'gone':<14} {len(found.gone)} objects that OUTPUT holds labels of and INPUT lost",
        f"{'ignored':<14} {left_out_as_text(found.left_out) or 'nothing'}",
        f"{'estimate':<14} {as_text(estimate)}",
        placement,
        "nothing was written",
    ]
    return "\n".join(lines)
