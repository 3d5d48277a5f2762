"""The finished part of a plan, compared with a count image by image."""

import random
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.plan.finished import split_plan
from pipeline.plan.remaining import merge_ranges
from pipeline.plan.shards import tables_of_shards, write_shards
from pipeline.schema import RANGES, Member, Shard
from pipeline.stages.publish import group_into_parts, reconcile

SIZES = {"tar": 7, "parquet": 5}  # images of an archive


def random_plan(chance: random.Random) -> list[Shard]:
    """Up to 100 shards, which are several row groups and several tables of a plan."""
    shards = []
    for number in range(chance.randint(1, 100)):
        kind = chance.choice(["files", "files", "tar", "parquet"])
        count = chance.randint(1, 9) if kind == "files" else 1
        members = tuple(Member(f"file:///{number}/{m}", "e", 10) for m in range(count))
        shards.append(Shard(f"shard-{chance.randint(0, 9)}-{number}", kind, members))
    return shards


def images_of(shard: Shard) -> int:
    return SIZES.get(shard.kind, len(shard.members))


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_is_split_by_what_is_staged(seed: int) -> None:
    chance = random.Random(seed)
    shards = random_plan(chance)
    likely = chance.choice([0.0, 0.3, 0.9, 1.0])
    staged = {
        shard.shard: [i for i in range(images_of(shard)) if chance.random() < likely]
        for shard in shards
        if chance.random() < 0.8
    }
    rows: list[dict[str, Any]] = [
        {
            "shard": shard.shard,
            "file": f"block-{chance.randint(0, 5)}",
            "status": "ok",
            "start": index,
            "stop": index + 1,
            "shard_size": images_of(shard) if index == images_of(shard) - 1 else None,
            "boxes": chance.randint(0, 9),
        }
        for shard in shards
        for index in staged.get(shard.shard, [])
    ]
    chance.shuffle(rows)
    found = merge_ranges([pa.Table.from_pylist(rows, schema=RANGES)])
    split = split_plan(write_shards(tables_of_shards(shards)), found)

    finished: dict[str, list[str]] = {}
    begun: defaultdict[str, int] = defaultdict(int)
    for shard in shards:
        done = staged.get(shard.shard, [])
        if shard.kind == "files" and done:
            finished[shard.shard] = [shard.members[index].uri for index in done]
        elif shard.kind != "files" and len(done) == images_of(shard):
            finished[shard.shard] = [shard.members[0].uri]
        elif shard.kind != "files" and done:
            begun[shard.shard] = len(done)
    plan = {one.shard: [member.uri for member in one.members] for one in split.finished}
    assert plan == finished
    assert {one.shard for one in split.begun} == set(begun)
    assert split.begun_images == sum(begun.values())
    objects = sum(len(shard.members) for shard in shards)
    assert split.left == objects - sum(map(len, finished.values()))
    reconcile(split.finished.names(), split.staged)
    assert split.staged.images == sum(len(staged[name]) for name in finished)
    parts = group_into_parts(split.finished.names(), split.staged, 20, 80)
    files = {row["shard"]: {r["file"] for r in rows if r["shard"] == row["shard"]} for row in rows}
    for part in parts:
        assert set(part.files) == set().union(*(files[name] for name in part.shards))
    assert all(a.shards[-1] < b.shards[0] for a, b in pairwise(parts))
    boxes: Counter[str] = Counter()
    for row in rows:
        boxes[row["shard"]] += row["boxes"]

    def fits(*shards: str) -> bool:
        images = sum(len(staged[name]) for name in shards)
        return images <= 20 and sum(boxes[name] for name in shards) <= 80

    assert all(len(part.shards) == 1 or fits(*part.shards) for part in parts)
    assert not any(fits(*a.shards, b.shards[0]) for a, b in pairwise(parts))
    assert bool(np.all(np.diff(split.staged.shard) >= 0))
