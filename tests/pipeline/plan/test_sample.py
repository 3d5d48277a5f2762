"""The sample of a probe is drawn over all of a plan, and the same for the same plan."""

from collections import Counter

import pytest

from pipeline.plan.sample import MOST_ARCHIVES, sample_plan
from pipeline.plan.shards import Shards, tables_of_shards, write_shards
from pipeline.schema import Member, Shard


def plan_of(files: int, archives: dict[str, int], per_shard: int = 50) -> Shards:
    """A plan of loose files of 1,000 bytes, and of archives of these sizes."""
    members = [Member(f"s3://b/{number:06}.jpg", "e", 1000) for number in range(files)]
    shards = [
        Shard(f"files-{start}", "files", tuple(members[start : start + per_shard]), access="a")
        for start in range(0, files, per_shard)
    ]
    shards += [Shard(name, "tar", (Member(name, "e", size),)) for name, size in archives.items()]
    return write_shards(tables_of_shards(shards))


def drawn_files(shards: list[Shard]) -> list[int]:
    uris = [m.uri for shard in shards if shard.kind == "files" for m in shard.members]
    return sorted(int(uri[-10:-4]) for uri in uris)


def test_loose_files_are_drawn_from_each_part_of_the_plan() -> None:
    sample = sample_plan(plan_of(10_000, {}), 200)
    found = drawn_files(sample.shards)
    assert [number // 50 for number in found] == list(range(200))  # one of each 50
    assert len({number % 50 for number in found}) > 20  # at no fixed place in them
    assert (sample.loose, sample.archive_bytes) == (10_000, 0)
    for shard in sample.shards:  # each group reaches from the beginning of the plan to its end
        numbers = drawn_files([shard])
        assert numbers[0] < 5_000 < numbers[-1] and shard.access == "a"


def test_the_same_plan_gives_the_same_sample() -> None:
    first, second = (sample_plan(plan_of(999, {"t": 10**6}), 50) for _ in range(2))
    assert first == second
    other = sample_plan(plan_of(1000, {"t": 10**6}), 50)
    assert drawn_files(first.shards) != drawn_files(other.shards)


@pytest.mark.parametrize("files", [1, 3, 199, 200, 201])
def test_a_small_plan_is_probed_whole(files: int) -> None:
    found = drawn_files(sample_plan(plan_of(files, {}), 200).shards)
    assert len(found) == len(set(found)) == min(files, 200)


def test_archives_are_drawn_by_their_bytes_and_read_from_their_beginning() -> None:
    archives = {f"small-{number}": 1_000 for number in range(100)} | {"large": 900_000}
    sample = sample_plan(plan_of(0, archives), 160)
    assert all(shard.kind == "tar" and shard.limit for shard in sample.shards)
    limits = Counter({shard.shard: shard.limit or 0 for shard in sample.shards})
    assert limits.total() == 160 and limits["large"] >= 0.8 * 160
    assert len(sample.shards) <= MOST_ARCHIVES and sample.archive_bytes == 1_000_000


def test_files_and_archives_share_a_probe_by_their_bytes() -> None:
    sample = sample_plan(plan_of(100, {"a.tar": 300_000}), 80)
    assert len(drawn_files(sample.shards)) == 20
    assert 60 <= sum(shard.limit or 0 for shard in sample.shards) < 60 + MOST_ARCHIVES
    few = sample_plan(plan_of(1, {"a.tar": 10**9}), 80)
    assert len(drawn_files(few.shards)) == 1  # at least one of them


def test_archives_of_unknown_size_are_probed_too() -> None:
    """Web servers may not say how large an archive is; the size of such a member is -1."""
    archives = {f"{number}.tar": -1 for number in range(5)}
    unknown = sample_plan(plan_of(100, archives), 80)
    assert unknown.archive_bytes is None and len(drawn_files(unknown.shards)) == 40
    assert {shard.shard for shard in unknown.shards if shard.kind == "tar"} == set(archives)
    some = sample_plan(plan_of(0, archives | {"a.tar": 2_000, "b.tar": 4_000}), 160)
    assert some.archive_bytes == 7 * 3_000
    assert {shard.shard for shard in some.shards} >= set(archives)


def test_files_of_unknown_size_are_half_of_a_probe() -> None:
    members = tuple(Member(f"https://b/{number:06}.jpg", "e", -1) for number in range(100))
    shards = [Shard("files-0", "files", members), Shard("a.tar", "tar", (Member("a", "e", 9),))]
    sample = sample_plan(write_shards(tables_of_shards(shards)), 80)
    assert len(drawn_files(sample.shards)) == 40
