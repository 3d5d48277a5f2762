"""The dataflow on Ray Data: shards -> encoded -> prepared -> detected -> staged, then published."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from model.resize import ResizeRule
from pipeline.plan.remaining import Staged, merge_ranges
from pipeline.schema import Receipt, Work
from pipeline.stages.prepare import Preparer
from pipeline.stages.publish import Part, PartFile, PublishTarget
from pipeline.stages.staged import list_staged_files, ranges_of_files, remove_damaged_blocks
from pipeline.stages.tasks import (
    part_files_of_table,
    read_ranges,
    read_work,
    receipts_of_table,
    stage_block,
    table_of_files,
    table_of_part,
    table_of_work,
    write_parts,
)

# Ray merges what a task yields up to this size, so it is also how much is committed at once: about
# 40 pictures of 288 x 400, 6 of 800 x 1066 (a detector batch takes several blocks then). GPUs take
# hundreds of these a second.
BLOCK_BYTES, GPU_BLOCK_BYTES = 16 << 20, 32 << 20
# Many detectors make many blocks, and a driver takes 5 to 8 ms of a CPU for each (`bench scale`,
# 2026-11-26): blocks grow with the pool, up to Ray Data's own size.
DETECTORS_PER_BLOCK_SIZE, MOST_BLOCK_BYTES = 4, 128 << 20
# What one of each holds of a CPU in Ray's count. Two actors leave room for two tasks on every CPU:
# else a pool without bounds would fill its nodes, keep readers and stagers out, and wait for them
# for ever (seen on 2026-11-25). How many of these run at once, `tasks` bounds.
ACTOR_CPUS, TASK_CPUS, PUBLISHER_CPUS = 0.499, 0.001, 0.5
FILES_PER_TASK = 256  # staged files that one task reads back, which takes it about a second

# Of Ray's nodes: a label, and what it must be ("A10G", "!spot", "in(A10G, L4)").
Labels = dict[str, str]


@dataclass(frozen=True)
class Pool:
    """The actors that detect: how many there are, and what each takes of what nodes."""

    fewest: int
    most: int
    num_cpus: float
    num_gpus: float
    memory: int  # bytes of a node's logical memory
    calls: int = 1  # of one detector at a time, in threads
    nodes: Labels = field(default_factory=dict)  # where they may be


@dataclass(frozen=True)
class Layout:
    """How many of each stage there may be, and where."""

    detectors: Pool
    preparers: int | None  # actors that decode, at most; None: as many as are needed and fit
    tasks: int  # that read, at most, and as many that stage
    nodes: Labels = field(default_factory=dict)  # where all but the detectors may be


@dataclass(frozen=True)
class FlowSettings:
    """What the flow needs."""

    plan: str  # the URL of its file
    staging: str
    resize: ResizeRule
    detector: type  # a callable PREPARED -> DETECTED, and what it is made with
    arguments: tuple[Any, ...]
    images_per_call: int  # from which a detector forms its batches
    layout: Layout


def block_bytes(detectors: Pool) -> int:
    """How much is handed on and committed at once, in a flow with such detectors."""
    one = GPU_BLOCK_BYTES if detectors.num_gpus else BLOCK_BYTES
    return min(MOST_BLOCK_BYTES, one * max(1, detectors.most // DETECTORS_PER_BLOCK_SIZE))


def _set_context(block: int = BLOCK_BYTES) -> None:
    """What Ray Data goes by in this process."""
    context = DataContext.get_current()
    context.target_max_block_size = block
    context.enable_progress_bars = False  # ours is shown
    # Else Ray Data 2.60 says of every error that "UDF failed to process a data block".
    context.raise_original_map_exception = True
    # It is no mistake to allow more readers than there are shards.
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")


def label_shards(work: list[Work], settings: FlowSettings) -> Iterator[Receipt]:
    """Label what is left of a plan's shards: one receipt a staged block."""
    layout, detectors = settings.layout, settings.layout.detectors
    _set_context(block_bytes(detectors))
    nodes = layout.nodes or None
    with warnings.catch_warnings():
        # Ray 2.60 announces the end of `scheduling_strategy`; pyproject.toml stays below 2.64.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        flow = (
            ray.data.from_arrow([table_of_work(one) for one in work])
            .map_batches(
                read_work,
                fn_args=(settings.plan,),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=TASK_CPUS,
                label_selector=nodes,
                compute=TaskPoolStrategy(layout.tasks),
            )
            .map_batches(
                Preparer,
                fn_constructor_args=(settings.resize,),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=ACTOR_CPUS,
                label_selector=nodes,
                compute=ActorPoolStrategy(min_size=1, max_size=layout.preparers),
            )
            # Fixed, or from the fewest up: growing one GPU at a time costs minutes.
            .map_batches(
                settings.detector,
                fn_constructor_args=settings.arguments,
                batch_size=settings.images_per_call,
                batch_format="pyarrow",
                num_cpus=detectors.num_cpus,
                num_gpus=detectors.num_gpus,
                memory=detectors.memory,
                label_selector=detectors.nodes or None,
                scheduling_strategy="SPREAD",
                compute=ActorPoolStrategy(
                    min_size=detectors.fewest,
                    max_size=detectors.most,
                    max_concurrent_calls_per_actor=detectors.calls,
                    enable_true_multi_threading=detectors.calls > 1,
                ),
            )
            .map_batches(
                stage_block,
                fn_args=(settings.staging,),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=TASK_CPUS,
                label_selector=nodes,
                compute=TaskPoolStrategy(layout.tasks),
            )
        )
    for batch in flow.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from receipts_of_table(batch)


def read_back_staging(staging: str, nodes: Labels | None = None) -> Staged:
    """What is staged: read here where it is little, else by Ray tasks on nodes of these labels.

    Blocks that are damaged are removed.
    """
    names = list_staged_files(staging)
    groups = [names[i : i + FILES_PER_TASK] for i in range(0, len(names), FILES_PER_TASK)]
    if len(groups) < 2:
        tables: Iterator[pa.Table] = (ranges_of_files(staging, group) for group in groups)
    else:
        tables = _by_tasks(read_ranges, [table_of_files(group) for group in groups], staging, nodes)
    return merge_ranges(remove_damaged_blocks(staging, tables))


def publish_parts(
    parts: list[Part], target: PublishTarget, nodes: Labels | None = None
) -> Iterator[PartFile]:
    """Write all output files, one Ray task a part, on nodes of these labels."""
    if parts:
        for batch in _by_tasks(write_parts, [table_of_part(part) for part in parts], target, nodes):
            yield from part_files_of_table(batch)


def _by_tasks(
    function: Callable[..., Any], tables: list[pa.Table], argument: Any, nodes: Labels | None
) -> Iterator[pa.Table]:
    """What `function` of each table and the `argument` gives, a Ray task a table."""
    _set_context()
    flow = ray.data.from_arrow(tables).map_batches(
        function,
        fn_args=(argument,),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=PUBLISHER_CPUS,
        label_selector=nodes or None,
    )
    yield from flow.iter_batches(batch_size=None, batch_format="pyarrow")
