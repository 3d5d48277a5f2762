"""Measures what planning and publishing cost a driver, with made-up lakes of growing size.

`python -m tests.jobs.label.test_scale` prints the table, up to ten million images. It leaves out
the parsing of a store's listing (test_growth.py measures it), a store's latency, boxes, and the
flow between plan and publishing.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from jobs.output.known_objects import read_known_objects
from jobs.output.manifest import make_manifest
from pipeline import dataflow
from pipeline.plan import plan as planning
from pipeline.plan.digests import NOTHING_KNOWN, Known
from pipeline.plan.remaining import merge_ranges, remaining_work
from pipeline.plan.shards import read_plan_tables, write_shards
from pipeline.schema import DETECTED, OK, Member
from pipeline.stages.publish import group_into_parts, reconcile
from pipeline.stages.stage import block_name
from tests.support.committed import make_target

BLOCK = 250  # images of a staged file; real ones hold as many as a detector takes in a call
IMAGES = {"files": 1, "tar": 1000}  # images in one object
PER_SHARD = {"files": planning.FILES_PER_SHARD, "tar": 1000}
MOST_MIB = 2048  # greatest memory of a driver, with all that it imports
SIZES = (10_000, 1_000_000, 10_000_000)
# The CPU time per image may be this many times that of the next smaller size.
NOISE = 2.0


def made_up_objects(kind: str, count: int) -> Iterator[tuple[Member, str]]:
    """Make objects that hold `count` images, with names and versions like those of S3."""
    for i in range(count // IMAGES[kind]):
        name = f"photos/2026/album-{i // 500:05d}/IMG_{i:08d}.jpg"
        etag = f"{i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"
        uri = f"s3://lake/{name}" if kind == "files" else f"s3://lake/shards/{i:06d}.tar"
        yield Member(uri, etag, 150_000 * IMAGES[kind]), kind


def plan_lake(kind: str, count: int, known_before: Known = NOTHING_KNOWN) -> planning.Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "list_objects", lambda *_: made_up_objects(kind, count))
        return planning.plan_shards("s3://lake", known=known_before)


def path_of_plan(folder: Path) -> str:
    """Return the path of the first night's plan."""
    return str(folder / "_runs" / "1" / "plan.parquet")


def plan_first_night(kind: str, count: int, folder: Path) -> None:
    """Plan a lake whose objects are all new."""
    found = plan_lake(kind, count)
    assert len(found.shards) == -(-count // PER_SHARD[kind])
    found.shards.write_to(path_of_plan(folder))
    work, size = remaining_work(found.shards, merge_ranges([]))
    assert size == 150_000 * count
    assert sum(len(one.rows) for one in work) == len(found.shards)
    assert len(work) < 4000


def plan_second_night(kind: str, count: int, folder: Path) -> None:
    """Plan the same lake again, of which one object was removed."""
    plan = path_of_plan(folder)[len(str(folder)) + 1 :]
    run = make_manifest(make_target(folder, "1"), plan, "s3://lake", [], {})
    night = read_known_objects(str(folder), [run], "s3://lake")
    found = plan_lake(kind, count - IMAGES[kind], night)
    assert (len(found.shards), found.changed, len(found.gone)) == (0, 0, 1)


def stage_blocks(kind: str, count: int, folder: Path) -> None:
    """Stage blocks of images without boxes, of all shards in their order."""
    (folder / "blocks").mkdir()
    names, per = (
        pa.array(write_shards(read_plan_tables(path_of_plan(folder))).names()),
        PER_SHARD[kind],
    )
    for first in range(0, count, BLOCK):
        image = np.arange(first, min(first + BLOCK, count))
        shard, index = image // per, image % per
        size = np.minimum(per, count - shard * per)
        columns = {
            "shard": names.take(pa.array(shard)),
            "index_in_shard": pa.array(index),
            "shard_size": pa.array(size, mask=index != size - 1),
            "status": pa.array([OK] * len(image)),
        }
        every = [columns.get(field.name, pa.nulls(len(image), field.type)) for field in DETECTED]
        table = pa.table(every, schema=DETECTED)
        pq.write_table(table, folder / "blocks" / block_name(table))


def publish(kind: str, count: int, folder: Path) -> None:
    """Read, reconcile and group the staging; the tasks that write parts grow with the cluster."""
    shards = write_shards(read_plan_tables(path_of_plan(folder)))
    staged = dataflow.read_back_staging(str(folder / "blocks"))
    reconcile(shards.names(), staged)
    assert staged.count_by_status() == {OK: count}
    found = group_into_parts(shards.names(), staged)
    assert sum(len(part.shards) for part in found) == len(shards)
    assert sum(len(part.files) for part in found) >= -(-count // BLOCK)


def resume(kind: str, count: int, folder: Path) -> None:
    """Find what is left to read after a third of the blocks was lost."""
    blocks = sorted((folder / "blocks").iterdir())
    for block in blocks[::3]:
        block.unlink()
    shards = write_shards(read_plan_tables(path_of_plan(folder)))
    staged = dataflow.read_back_staging(str(folder / "blocks"))
    work, _ = remaining_work(shards, staged)
    assert sum(len(one.rows) for one in work) == len(shards) - (staged.found == staged.sizes).sum()
    begun = sum(stop - start for one in work for done in one.done for start, stop in done)
    assert begun + staged.found[staged.found == staged.sizes].sum() == staged.images
    assert 0 <= staged.images - (count - len(blocks[::3]) * BLOCK) < BLOCK


STEPS: list[Callable[[str, int, Path], None]] = [
    plan_first_night,
    plan_second_night,
    stage_blocks,
    publish,
    resume,
]
ON_RAY = (publish, resume)


def peak_mib() -> float:
    """Return the peak memory of this process; `getrusage` would include that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure(step: str, kind: str, count: int, folder: Path) -> dict[str, float]:
    """Measure a step in this process, which has done nothing else."""
    (function,) = [one for one in STEPS if one.__name__ == step]
    import_module("jobs.label.label")  # a driver imports the detector too
    if function in ON_RAY:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    before, began, used = peak_mib(), time.monotonic(), time.process_time()
    function(kind, count, folder)
    return {
        "seconds": time.monotonic() - began,
        "cpu": time.process_time() - used,
        "growth": peak_mib() - before,
        "peak": peak_mib(),
    }


def measure_all_steps(kind: str, count: int) -> dict[str, dict[str, float]]:
    """Measure each step in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="scale-"))
    found = {}
    try:
        for step in STEPS:
            command = [sys.executable, "-m", __spec__.name, step.__name__, kind, str(count)]
            done = subprocess.run([*command, str(folder)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            found[step.__name__] = json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder)
    return found


def check_growth(kind: str, sizes: Sequence[int]) -> None:
    """Print what each size costs; raise AssertionError if a driver needs too much."""
    last: dict[str, float] = {}
    for count in sizes:
        for step, found in measure_all_steps(kind, count).items():
            if step == stage_blocks.__name__:
                continue
            print(
                f"{kind:<6} {count:>9} {step:<13} {found['seconds']:>7.1f} s, of a CPU "
                f"{found['cpu']:>6.1f} s, {found['growth']:>5.0f} MiB more, "
                f"{found['peak']:>5.0f} MiB in all",
                flush=True,
            )
            assert found["peak"] < MOST_MIB
            # The start of a step takes about a second, whatever there is to do.
            each = max(found["cpu"], 1.0) / count
            assert each < NOISE * last.get(step, each)
            last[step] = each


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("kind", IMAGES)
def test_ten_thousand_images_are_planned_published_and_resumed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataflow, "FILES_PER_TASK", 8)  # so that tasks of Ray read the staging
    for step in STEPS:
        step(kind, 10_000, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", IMAGES)
def test_a_driver_needs_as_much_time_for_each_image_of_a_large_lake(kind: str) -> None:
    check_growth(kind, SIZES[:2])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        name, lake, images, folder = sys.argv[1:]
        print(json.dumps(measure(name, lake, int(images), Path(folder))))
    else:
        for lake in IMAGES:
            check_growth(lake, SIZES)
