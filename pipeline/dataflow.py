"""The dataflow on Ray Data: shards -> encoded -> prepared -> detected -> staged, then published."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from model.resize import ResizeRule
from pipeline.blocks import (
    part_files,
    part_item,
    publish_block,
    read_block,
    receipts,
    shard_block,
    stage_block,
)
from pipeline.detect import Detector, DetectorSpec
from pipeline.prepare import Preparer
from pipeline.publish import Part, PartFile, PublishTarget
from pipeline.schema import Done, Receipt, Shard

# Ray merges what a task yields up to this size, so it is also how much is committed at once: about
# 40 pictures of 288 x 400, 6 of 800 x 1066 (a detector batch takes several blocks then).
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class FlowSettings:
    """What the flow needs beside the detector."""

    staging: str
    resize: ResizeRule
    detectors: int  # actors in the detector pool
    preparers: int  # actors that decode, at most
    images_per_call: int  # pictures handed to a detector at once, from which it forms batches


def _set_context() -> None:
    """What Ray Data goes by in this process."""
    context = DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False  # ours is shown
    # Else Ray Data 2.60 says of every error that "UDF failed to process a data block".
    context.raise_original_map_exception = True


def label_shards(
    shards: list[Shard], done: dict[str, Done], spec: DetectorSpec, settings: FlowSettings
) -> Iterator[Receipt]:
    """Label all images of `shards` but those that are `done`: one receipt a staged block.

    Fractions of a CPU: with whole ones the actors of a 2-CPU machine would hold all of it and
    reading would wait for ever. `num_gpus` is 1 a detector on accelerators.
    """
    _set_context()
    on_gpu = spec.device != "cpu"
    with warnings.catch_warnings():
        # Ray 2.60 announces the end of `scheduling_strategy`; pyproject.toml stays below 2.64.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        flow = (
            ray.data.from_arrow(
                [shard_block(shard, done.get(shard.shard, Done())) for shard in shards]
            )
            # Reading waits for the network and needs little of a CPU.
            .map_batches(read_block, batch_size=1, batch_format="pyarrow", num_cpus=0.25)
            .map_batches(
                Preparer,
                fn_constructor_args=(settings.resize,),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=0.5,
                compute=ActorPoolStrategy(min_size=1, max_size=settings.preparers),
            )
            # A fixed pool: growing one GPU at a time costs minutes, and models load slowly.
            .map_batches(
                Detector,
                fn_constructor_args=(spec,),
                batch_size=settings.images_per_call,
                batch_format="pyarrow",
                num_cpus=0 if on_gpu else 0.5,
                num_gpus=1 if on_gpu else 0,
                scheduling_strategy="SPREAD",
                compute=ActorPoolStrategy(size=settings.detectors),
            )
            .map_batches(
                stage_block,
                fn_args=(settings.staging,),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=0.25,
            )
        )
    for batch in flow.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from receipts(batch)


def publish_parts(parts: list[Part], target: PublishTarget) -> Iterator[PartFile]:
    """Write all output files, one Ray task a part."""
    if not parts:
        return
    _set_context()
    items = [part_item(part) for part in parts]
    flow = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        publish_block, fn_args=(target,), batch_size=1, batch_format="pyarrow", num_cpus=0.5
    )
    for batch in flow.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from part_files(batch)
