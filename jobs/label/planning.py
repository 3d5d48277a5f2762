"""Plan which images a run labels. Nothing here writes; run_record.py writes the plan."""

from dataclasses import dataclass, field

import pyarrow.compute as pc

from jobs.accounting.estimate import Estimate, as_text
from jobs.accounting.plurals import counted
from jobs.label.options import LabelOptions
from jobs.output import paths
from jobs.output.run_ids import new_run_id
from pipeline.plan.digests import Known
from pipeline.plan.plan import Plan, left_out_as_text, plan_shards
from pipeline.plan.shards import Shards
from pipeline.storage.files import join
from pipeline.storage.urls import printable

COLUMNS_SHOWN = 5  # columns of images that differ from file to file
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
    image_column: str | None  # the columns of Parquet files that the user named
    id_column: str | None
    access: str | None  # how the stores of INPUT are asked, see storage/access.py
    carry: str | None = None  # the columns that images carry along, as the user named them
    canaries: str | None = None  # digest of the canaries that prove the run; None: it has none


def plan_request(options: LabelOptions) -> PlanRequest:
    """The images that the options of a command name."""
    return PlanRequest(
        options.input,
        options.format,
        options.limit,
        options.output,
        options.machines().device,
        options.precision,
        options.image_column,
        options.id_column,
        options.input_access,
        options.carry,
    )


@dataclass(frozen=True)
class Run:
    """A planned run, new or resumed. A resumed run keeps its device, precision and batches."""

    run_id: str
    shards: Shards
    device: str = "auto"  # "cpu" or "cuda" once the run began
    precision: str = "auto"  # "fp32", "bf16", "fp16", "mixed" or "int8" once the run began
    count: int | None = None  # images in every batch, once the run began
    retries_failed: bool = False  # whether it labels again what failed (--retry-failed)
    # Number of objects under INPUT that are not read, by reason (listing.LEFT_OUT).
    left_out: dict[str, int] = field(default_factory=dict)
    # Number of its Parquet files by the columns that their images are read from.
    image_columns: dict[str, int] = field(default_factory=dict)
    canaries: str | None = None  # as in PlanRequest

    @property
    def is_resumed(self) -> bool:
        return self.device != "auto"


def plan_url(output: str, run_id: str) -> str:
    """The URL of the plan of an unfinished run. A finished run has a plan beside its manifest."""
    return join(output, paths.plan_under_way(run_id))


def plan_images(request: PlanRequest, known: Known) -> Plan:
    """Plan the images under INPUT that are not `known`."""
    return plan_shards(
        request.input,
        request.format,
        request.limit,
        known,
        request.output,
        request.image_column,
        request.id_column,
        request.access,
        paths.OtherOutputs(),
        request.carry,
    )


def make_run(output: str, found: Plan, canaries: str | None = None) -> Run:
    """A run with a new run id over what was planned. `canaries` as in PlanRequest."""
    return Run(
        new_run_id(output),
        found.shards,
        left_out=found.left_out,
        image_columns=found.image_columns,
        canaries=canaries,
    )


def plan_as_text(found: Plan, estimate: Estimate | None, placement: str) -> str:
    """The text that --dry-run prints: the plan, its estimate, and its placement."""
    lines = []
    for kind, name in KINDS:
        outline = found.shards.outline
        shards = outline.filter(pc.equal(outline["kind"], kind))
        objects, size = (pc.sum(shards[column]).as_py() or 0 for column in ("objects", "size"))
        if objects:
            lines.append(
                f"{name:<14} {objects} in {counted(len(shards), 'shard')}, {size / 1e6:.1f} MB"
            )
    if not lines:
        lines.append("nothing is new")
        estimate_and_placement = []
    else:
        estimate_and_placement = [f"{'estimate':<14} {as_text(estimate)}", placement]
    lines += [
        *(f"{'':<14} {line}" for line in image_columns_as_lines(found)),
        *(f"{'':<14} {line}" for line in carried_as_lines(found)),
        f"{'known':<14} {counted(found.known, 'object')} that OUTPUT holds already",
        f"{'changed':<14} {counted(found.changed, 'object')} that OUTPUT holds an older version of",
        f"{'again':<14} {counted(found.again, 'object')} that failed, or by --relabel",
        f"{'gone':<14} {counted(len(found.gone), 'object')} that INPUT lost, labelled in OUTPUT",
        f"{'ignored':<14} {left_out_as_text(found.left_out, found.first_left_out) or 'nothing'}",
        *(f"{'no version':<14} {line}" for line in unversioned_as_lines(found)),
        *estimate_and_placement,
        "nothing was written",
    ]
    return "\n".join(lines)


def unversioned_as_lines(found: Plan) -> list[str]:
    """The objects of which INPUT's stores report no version: one line, or none."""
    if not found.unversioned:
        return []
    return [
        f"{counted(found.unversioned, 'object')} of INPUT without ETag, digest or Last-Modified: a "
        "replacement of the same size is not noticed, nor is any where the server sends no size "
        "(--relabel labels all again)"
    ]


def image_columns_as_lines(found: Plan) -> list[str]:
    """The columns that images of Parquet files are read from, most files first."""
    columns = sorted(found.image_columns.items(), key=lambda pair: -pair[1])
    shown = columns[:COLUMNS_SHOWN]
    if more := sum(number for _, number in columns[COLUMNS_SHOWN:]):
        shown.append(("other columns", more))
    return [printable(f"images of {counted(n, 'new Parquet file')}: {name}") for name, n in shown]


def carried_as_lines(found: Plan) -> list[str]:
    """The columns that images carry along, and where they are missing."""
    lines = []
    if carry := found.shards.carry:
        columns = ", ".join(f"{name} ({kind})" for name, kind in carry.as_document().items())
        lines.append(f"carried along: {columns}")
    lines += [
        f"{counted(number, 'new Parquet file')} without the column {name}: it is NULL there"
        for name, number in found.files_without.items()
    ]
    return [printable(line) for line in lines]
