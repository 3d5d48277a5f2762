"""What `label` prints of its plan before it labels."""

from collections.abc import Sequence

import pyarrow as pa

from jobs.accounting.plurals import counted
from jobs.label.log.lines import print_line
from jobs.label.options import LabelOptions
from jobs.label.planning import carried_as_lines, image_columns_as_lines, unversioned_as_lines
from jobs.output.carried import columns_that_become_text
from jobs.output.manifest import Manifest
from jobs.output.run_documents import computations
from model.computation import Computation
from pipeline.carry.types import name_of_type
from pipeline.plan.carry_choice import parse_carry
from pipeline.plan.plan import Plan
from pipeline.storage.files import canonical_url
from pipeline.storage.urls import mask, printable

GONE_SHOWN = 3


def print_plan_notices(options: LabelOptions, found: Plan, runs: Sequence[Manifest]) -> None:
    """Print what the user of the command should know of a plan. `runs` are those of OUTPUT."""
    if found.shards:
        print_line(planned_as_text(found))
    _print_gone_objects(options.output, found.gone, options.relabel)
    for line in (
        *image_columns_as_lines(found),
        *carried_as_lines(found),
        *unversioned_as_lines(found),
    ):
        print_line(line)
    if found.known and any(_carries_otherwise(options, run) for run in runs):
        print_line(
            "--carry is for new objects: the images that "
            f"{mask(options.output)} holds already keep the columns that they have (--relabel "
            "makes them again)"
        )
    source = canonical_url(options.input)
    kept = [run for run in runs if not options.relabel or run["input"] != source]
    for column, earlier in columns_that_become_text(kept, found.shards.carry):
        name = printable(column.name)
        print_line(
            f"--carry {name} is {name_of_type(column.type)} here and {earlier} in earlier runs: "
            f"queries see it as text, so that no value changes (--carry {name}:{earlier} keeps "
            "the type, and NULL stands for what it cannot hold)"
        )
    if found.known and (options.image_column or options.id_column):
        print_line(
            "--image-column and --id-column are for new objects: the labels of those that "
            f"{mask(options.output)} holds already stay (--relabel makes them again)"
        )
    if found.again and not options.relabel:
        print_line(f"tried again: {counted(found.again, 'object')} that failed")


def _carries_otherwise(options: LabelOptions, run: Manifest) -> bool:
    """Whether a run lacks a column of --carry, or has it in another type than the user gives."""
    carried = run.get("carried", {})
    return any(
        column.name not in carried
        or (column.type is not None and carried[column.name] != name_of_type(column.type))
        for column in parse_carry(options.carry)
    )


def planned_as_text(found: Plan) -> str:
    """How much is to be labelled, and how much is labelled already."""
    text = f"to label: {counted(found.shards.objects, 'object')}, {found.shards.size / 1e6:.1f} MB"
    if found.changed:
        text += f", {found.changed} changed since the last run"
    if found.known:
        text += f"; labelled already: {found.known}"
    return text


def _print_gone_objects(output: str, gone: pa.Array, relabel: bool) -> None:
    """Print which objects left INPUT. Their labels stay unless --relabel replaces them."""
    if len(gone):
        first = ", ".join(gone[:GONE_SHOWN].to_pylist())
        more = ", ..." if len(gone) > GONE_SHOWN else ""
        fate = "go, as --relabel replaces their runs" if relabel else "stay"
        print_line(
            f"gone from INPUT: {counted(len(gone), 'object')} that {mask(output)} holds labels of; "
            f"these labels {fate}: {printable(first)}{more}"
        )


def print_other_computations(
    output: str, fingerprint: str, computation: Computation, runs: Sequence[Manifest]
) -> None:
    """Print that the newest of the `runs` with this fingerprint computed otherwise, if it did."""
    same_model = [r for r in runs if r["model_fingerprint"] == fingerprint]
    if not same_model:
        return
    before = computations(output, same_model[-1]["run_id"])
    if before and computation.as_text() not in before:
        print_line(
            f"{mask(output)} holds labels that were computed in {', '.join(before)}; these "
            f"are in {computation.as_text()}: the last digits of scores and boxes may differ"
        )
