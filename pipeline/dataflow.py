"""The dataflow on Ray Data: shards -> encoded -> prepared -> detected -> staged -> published."""

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
from pipeline.plan.shards import table_of_shards
from pipeline.schema import Receipt, Shard, Work
from pipeline.stages.prepare import Preparer
from pipeline.stages.publish import Part, PartFile, PublishTarget
from pipeline.stages.staged import list_staged_files, ranges_of_files, remove_damaged_blocks
from pipeline.stages.tasks import (
    part_files_of_table,
    read_planned_shards,
    read_ranges,
    read_work,
    receipts_of_table,
    stage_block,
    table_of_files,
    table_of_part,
    table_of_receipt,
    table_of_work,
    write_parts,
)
from pipeline.stages.tiling import Tiling

# Ray merges the output of a task into blocks of up to this many bytes. A block is also the unit of
# commit, and what a detector gets in one call. GPUs process hundreds of images a second: their
# blocks hold 250 images of 480 x 640, or 100 of 800 x 1066, so that images of one canvas meet. On
# CPUs they hold 20 images of 288 x 400, or 3 of 800 x 1066, so that the detectors of all cores get
# some of a small lake, and progress shows early. (Sizes are those of `ResizeRule.prepared_size`.)
GPU_BLOCK_BYTES, CPU_BLOCK_BYTES = 256 << 20, 8 << 20
# Of JPEGs that detectors decode, such a block holds 350 of 640 x 480, or 150 of 1066 x 800.
JPEG_BLOCK_BYTES = 32 << 20
# Many detectors make many blocks, and the driver needs 5 to 8 ms of a CPU for each block
# (`bench scale`, 2026-11-26). Blocks of large pools of CPUs therefore grow, up to half a minute of
# work: 25 images of 800 x 1066.
CPU_DETECTORS_PER_BLOCK_SIZE, MOST_CPU_BLOCK_BYTES = 16, 64 << 20
# CPUs that Ray counts for each actor and each task. Two actors leave room for two tasks on every
# CPU. Otherwise a pool without an upper bound would fill its nodes, leave no room for readers and
# stagers, and wait for them for ever (seen on 2026-11-25). `Layout.tasks` limits concurrent tasks.
ACTOR_CPUS, TASK_CPUS, PUBLISHER_CPUS = 0.499, 0.001, 0.5
FILES_PER_TASK = 256  # staged files that one task reads back; this takes about a second

# Node labels in Ray: label key -> required value ("A10G", "!spot", "in(A10G, L4)").
Labels = dict[str, str]


@dataclass(frozen=True)
class Pool:
    """The detector actors: their number, the resources of each actor, and the allowed nodes."""

    fewest: int
    most: int
    num_cpus: float
    num_gpus: float
    memory: int  # bytes of a node's logical memory
    calls: int = 1  # concurrent calls of one detector, each in its own thread
    nodes: Labels = field(default_factory=dict)  # labels of the nodes that may run detectors


@dataclass(frozen=True)
class Layout:
    """How many actors and tasks each stage may have, and on which nodes."""

    detectors: Pool
    preparers: int | None  # maximum number of decoding actors; None: as many as are needed and fit
    fewest_preparers: int  # decoding actors that start at once; more follow one by one
    tasks: int  # maximum number of reading tasks, and also of staging tasks
    nodes: Labels = field(default_factory=dict)  # labels of the nodes for all other stages


@dataclass(frozen=True)
class FlowSettings:
    """The settings of the dataflow."""

    plan: str  # URL of the plan file
    staging: str  # URL of the staging folder
    resize: ResizeRule
    detector: type  # a class whose instances are callables PREPARED -> DETECTED
    arguments: tuple[Any, ...]  # arguments of the constructor of `detector`
    layout: Layout
    tiling: Tiling | None = None  # how images are tiled; None if they are not
    leave_jpegs: bool = False  # whether detectors decode JPEGs


def block_bytes(detectors: Pool, leave_jpegs: bool = False) -> int:
    """Target size of a block in bytes, in a flow with these detectors."""
    if detectors.num_gpus:
        return JPEG_BLOCK_BYTES if leave_jpegs else GPU_BLOCK_BYTES
    sizes = max(1, detectors.most // CPU_DETECTORS_PER_BLOCK_SIZE)
    return min(MOST_CPU_BLOCK_BYTES, sizes * CPU_BLOCK_BYTES)


def _set_context(block: int = CPU_BLOCK_BYTES) -> None:
    """Set Ray Data's options in this process."""
    context = DataContext.get_current()
    context.target_max_block_size = block
    context.enable_progress_bars = False  # the project shows its own progress bar
    # Without this option Ray Data 2.60 reports every error as "UDF failed to process a data block".
    context.raise_original_map_exception = True
    # Ray warns if the limit of readers is above the number of shards, and if there are more
    # detectors than blocks. Neither is a mistake here.
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors")


def label_shards(work: list[Work], settings: FlowSettings) -> Iterator[Receipt]:
    """Label the shards in `work`. Yields one receipt per staged block."""
    tables = [table_of_work(one) for one in work]
    read, last = (read_work, settings.plan), (stage_block, settings.staging)
    yield from _receipts(tables, read, last, settings)


def probe_shards(shards: list[Shard], settings: FlowSettings) -> Iterator[Receipt]:
    """Label shards, and write nothing. Yields one receipt per block."""
    tables = [table_of_shards([shard]) for shard in shards]
    yield from _receipts(tables, (read_planned_shards,), (table_of_receipt,), settings)


def _receipts(
    tables: list[pa.Table],
    read: tuple[Any, ...],
    last: tuple[Any, ...],
    settings: FlowSettings,
) -> Iterator[Receipt]:
    """Run the dataflow over `tables`, one for each task that reads.

    `read` and `last` are the functions of the first and the last stage, with their arguments behind
    the table.
    """
    layout, detectors = settings.layout, settings.layout.detectors
    _set_context(block_bytes(detectors, settings.leave_jpegs))
    nodes = layout.nodes or None
    with warnings.catch_warnings():
        # Ray 2.60 deprecates `scheduling_strategy`. pyproject.toml requires a version below 2.64.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        flow = (
            # `from_arrow` would start a task for each table, and wait for them.
            ray.data.from_blocks(tables)
            .map_batches(
                read[0],
                fn_args=read[1:],
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=TASK_CPUS,
                label_selector=nodes,
                compute=TaskPoolStrategy(layout.tasks),
            )
            .map_batches(
                Preparer,
                fn_constructor_args=(settings.resize,),
                # GPUs enlarge images: that saves a core's time, and most bytes between the stages.
                fn_constructor_kwargs={
                    "enlarge": not detectors.num_gpus,
                    "tiling": settings.tiling,
                    "leave_jpegs": settings.leave_jpegs,
                },
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=ACTOR_CPUS,
                label_selector=nodes,
                compute=ActorPoolStrategy(
                    min_size=layout.fewest_preparers, max_size=layout.preparers
                ),
            )
            # The pool has a fixed size or starts with `fewest` actors, because adding one GPU at a
            # time takes minutes.
            .map_batches(
                settings.detector,
                fn_constructor_args=settings.arguments,
                batch_size=None,
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
                last[0],
                fn_args=last[1:],
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
    """Read what the blocks under the URL `staging` hold, and remove damaged blocks.

    Up to FILES_PER_TASK files are read in this process. More files are read by Ray tasks on nodes
    with the labels `nodes`.
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
    """Write all output files, with one Ray task per part, on nodes with the labels `nodes`."""
    if parts:
        for batch in _by_tasks(write_parts, [table_of_part(part) for part in parts], target, nodes):
            yield from part_files_of_table(batch)


def _by_tasks(
    function: Callable[..., Any], tables: list[pa.Table], argument: Any, nodes: Labels | None
) -> Iterator[pa.Table]:
    """The results of `function(table, argument)`, with one Ray task per table."""
    _set_context()
    flow = ray.data.from_blocks(tables).map_batches(
        function,
        fn_args=(argument,),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=PUBLISHER_CPUS,
        label_selector=nodes or None,
    )
    yield from flow.iter_batches(batch_size=None, batch_format="pyarrow")
