"""`detr-batch label` in one process, without Ray: planning, reading, preparing, detecting, staging,
publishing and committing are the real functions, which are called one after the other.

`python -m tests.support.alone label INPUT OUTPUT ...` is the command, without Ray.
"""

import pkgutil
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

import jobs.cli
import jobs.cluster.start
import jobs.label.execution
import jobs.label.label
import jobs.label.probe
import jobs.label.publication
import model.ops.cpu_kernels  # noqa: F401 - so that processes that are forked need not import it
import pipeline.stages.prepare
import pipeline.stages.read
from jobs.cluster.placement import Node, Placement, placement_on
from jobs.cluster.request import ClusterRequest
from jobs.label.metrics import RunMetrics
from pipeline.dataflow import FlowSettings, Labels
from pipeline.isolation.child import Answers, Child, ChildFailed, Row
from pipeline.plan.shards import table_of_shards
from pipeline.schema import Member, Receipt, Shard, Work
from pipeline.stages.prepare import Preparer
from pipeline.stages.publish import Part, PartFile, PublishTarget
from pipeline.stages.tasks import (
    part_files_of_table,
    read_planned_shards,
    read_work,
    receipts_of_table,
    stage_block,
    table_of_part,
    table_of_receipt,
    table_of_work,
    write_parts,
)

IMAGES_PER_BLOCK = 2
MACHINE = {"CPU": 2.0, "memory": float(8 << 30)}


def label_without_ray(
    children: bool, replace: Callable[[object, str, object], None] = setattr
) -> None:
    """Replace Ray in this process: one call after the other does its work.

    `children`: images are opened in child processes nevertheless, as they may do harm. `replace`
    sets an attribute of a module, such as `MonkeyPatch.setattr`, which can undo it.
    """
    nodes = [{"NodeID": "here", "Alive": True, "Resources": MACHINE, "Labels": {}}]
    cluster = SimpleNamespace(nodes=lambda: nodes, cluster_resources=lambda: MACHINE)
    patches: dict[Any, dict[str, Any]] = {
        jobs.cluster.start: {"ray": cluster},
        jobs.label.label: {
            "start_or_join_ray": _place,
            "ray": cluster,
            "RunMetrics": _NoMetrics,
        },
        jobs.label.execution: {"label_shards": label_shards},
        jobs.label.probe: {
            "place_for_probe": _place_for_probe,
            "probe_shards": probe_shards,
            "ray": cluster,
        },
        jobs.label.publication: {"publish_parts": publish_parts},
    }
    if not children:
        patches[pipeline.stages.read] = {"read_rows_in_child": _read_rows_here}
        patches[pipeline.stages.prepare] = {
            "read_rows_in_child": _read_rows_here,
            "Child": _NoChild,
        }
    for module, changed in patches.items():
        for name, value in changed.items():
            assert hasattr(module, name), f"{module.__name__} has no {name} any more"
            replace(module, name, value)


def label_shards(work: list[Work], settings: FlowSettings) -> Iterator[Receipt]:
    """As dataflow.py: label the shards in `work`, and yield a receipt for each staged block."""
    encoded = chain.from_iterable(read_work(table_of_work(one), settings.plan) for one in work)
    for block in _detect(encoded, settings):
        yield from receipts_of_table(stage_block(block, settings.staging))


def probe_shards(shards: list[Shard], settings: FlowSettings) -> Iterator[Receipt]:
    """As dataflow.py: label shards, write nothing, and yield a receipt for each block."""
    encoded = chain.from_iterable(read_planned_shards(table_of_shards([one])) for one in shards)
    for block in _detect(encoded, settings):
        yield from receipts_of_table(table_of_receipt(block))


def _detect(tables: Iterator[pa.Table], settings: FlowSettings) -> Iterator[pa.Table]:
    """The DETECTED blocks of ENCODED tables."""
    prepare = Preparer(settings.resize, tiling=settings.tiling, leave_jpegs=settings.leave_jpegs)
    detect = settings.detector(*settings.arguments)
    for encoded in tables:
        for prepared in prepare(encoded):
            for start in range(0, len(prepared), IMAGES_PER_BLOCK):
                yield detect(prepared.slice(start, IMAGES_PER_BLOCK))


def publish_parts(
    parts: list[Part], target: PublishTarget, nodes: Labels | None = None
) -> Iterator[PartFile]:
    """As dataflow.py: write all output files, one part after the other."""
    for part in parts:
        yield from part_files_of_table(write_parts(table_of_part(part), target))


def _place(request: ClusterRequest, output: str, first: Member, access: str | None) -> Placement:
    return placement_on(request, [Node(MACHINE, {})], cluster=False)


def _place_for_probe(request: ClusterRequest) -> Placement:
    return placement_on(request, [Node(MACHINE, {})], cluster=False)


class _NoMetrics(RunMetrics):
    """RunMetrics exports through Ray, which is not there."""

    def __init__(self, *_: object):
        pass

    def __enter__(self) -> RunMetrics:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _NoChild:
    """A child process that is never asked for anything."""

    unlimited_because = ""

    def __init__(self, answers: Answers, preload: str):
        self.answers = answers

    def start(self) -> None:
        pass


def _read_rows_here(
    child: Child,
    target: str,
    arguments: Callable[[int], tuple[Any, ...]],
    seconds: float,
    failed: Callable[[int, ChildFailed], Row],
    go_on: bool,
    rows: int | None = None,
) -> Iterator[Row]:
    """`read_rows_in_child` in this process: its images harm nobody."""
    for row in pkgutil.resolve_name(target)(*arguments(0)):
        yield {name: row.get(name) for name in child.answers.schema.names}


if __name__ == "__main__":
    label_without_ray(children="--no-page" not in sys.argv)  # they read the pictures of a page
    sys.exit(jobs.cli.main())
