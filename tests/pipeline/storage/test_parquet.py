"""Damaged staged blocks and plans are noticed, and those of older versions are still read."""

import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.plan.shards import (
    read_plan_tables,
    read_shards_of_group,
    table_of_shards,
    write_shards,
)
from pipeline.schema import Member, Shard
from pipeline.stages.publish import group_into_parts, publish_part
from pipeline.stages.stage import stage
from pipeline.stages.staged import read_staged_block, read_staging
from pipeline.storage.errors import DamagedFile, OutputError
from pipeline.storage.files import open_location
from tests.support.blocks import block
from tests.support.committed import make_target
from tests.support.damage import DAMAGES, flip, warnings_of

SHARDS = [f"shard-{number}" for number in range(4)]


@pytest.fixture
def blocks(tmp_path: Path) -> list[Path]:
    """Blocks of two images each; each block has its own shard."""
    for shard in SHARDS:
        stage(block(shard, [0, 1], 2, boxes=3), str(tmp_path / "blocks"))
    return sorted((tmp_path / "blocks").iterdir())


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan of six shards, each in a row group of its own."""
    members = tuple(Member(f"file:///lake/{n}.jpg", f"{n}-{n}", n) for n in range(3))
    shards = [Shard(f"files-{n:04}", "files", members) for n in range(6)]
    write_shards([table_of_shards(shards)]).write_to(str(tmp_path / "plan.parquet"))
    return tmp_path / "plan.parquet"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_block_is_dropped(
    damage: str, blocks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = blocks
    logged = warnings_of("pipeline.stages.staged", monkeypatch)
    first.write_bytes(DAMAGES[damage](first.read_bytes()))
    result = read_staging(str(first.parent))
    assert result.files.to_pylist() == [path.name for path in others]
    assert result.images == 2 * len(others)
    assert sorted(first.parent.iterdir()) == others
    assert logged == [f"{first} was damaged and is removed: its images are computed again"]


def test_a_damaged_block_is_dropped_from_a_bucket(bucket: str) -> None:
    names = [stage(block(shard, [0, 1], 2), bucket).file for shard in SHARDS]
    fs, path = open_location(f"{bucket}/{names[0]}", "staging")
    fs.pipe_file(path, flip(0.4, 6)(fs.cat_file(path)))
    assert read_staging(bucket).files.to_pylist() == sorted(names[1:])
    fs.invalidate_cache()
    assert not fs.exists(path)


def test_a_block_that_is_damaged_when_it_is_published_is_computed_again(
    blocks: list[Path], tmp_path: Path
) -> None:
    target = make_target(tmp_path, "run", ("", "circle"), str(tmp_path / "blocks"))
    (part,) = group_into_parts(SHARDS, read_staging(target.staging))
    blocks[0].write_bytes(flip(0.5, 1)(blocks[0].read_bytes()))
    with pytest.raises(OutputError, match=f"{blocks[0].name} was damaged, and is removed"):
        publish_part(part, target)
    assert sorted(blocks[0].parent.iterdir()) == blocks[1:]
    assert not (tmp_path / "images").exists()
    (gone,) = set(SHARDS) - set(read_staging(target.staging).shards.to_pylist())
    stage(block(gone, [0, 1], 2, boxes=3), target.staging)
    (part,) = group_into_parts(SHARDS, read_staging(target.staging))
    assert [file.rows for file in publish_part(part, target)] == [8, 24]


def test_blocks_of_older_versions_are_read(blocks: list[Path]) -> None:
    """They have no checksums and fewer columns; damage that Parquet itself notices is found."""
    folder, name = str(blocks[0].parent), blocks[0].name
    whole = read_staged_block(folder, name)
    older = whole.drop_columns(["retries", "computation"])
    pq.write_table(older, blocks[0], compression="zstd")
    assert read_staged_block(folder, name).equals(whole)
    found = read_staging(folder)
    assert (found.images, found.boxes.sum()) == (2 * len(SHARDS), 6 * len(SHARDS))
    pq.write_table(older.rename_columns({"boxes": "coxes"}), blocks[0], compression="zstd")
    with pytest.raises(DamagedFile):
        read_staged_block(folder, name)
    blocks[0].write_bytes(blocks[0].read_bytes()[:-9])
    assert read_staging(folder).images == 2 * len(SHARDS) - 2


def test_every_bit_that_is_flipped_is_noticed(
    blocks: list[Path], plan: Path, generator: torch.Generator
) -> None:
    """The footer and the headers of pages are included, which page checksums do not cover."""
    folder, name = str(blocks[0].parent), blocks[0].name
    cases: list[tuple[Path, Callable[[], pa.Table]]] = [
        (blocks[0], lambda: read_staged_block(folder, name)),
        (plan, lambda: pa.concat_tables(read_plan_tables(str(plan)))),
    ]
    for file, read in cases:
        read()
        whole = file.read_bytes()
        for place in torch.randint(8 * len(whole), (400,), generator=generator).tolist():
            data = bytearray(whole)
            data[place // 8] ^= 1 << place % 8
            file.write_bytes(data)
            with pytest.raises(DamagedFile):
                pytest.fail(f"bit {place} was not noticed: {read()}")


@pytest.mark.parametrize("damage", [*DAMAGES, "short"])
def test_a_damaged_plan_is_named(damage: str, plan: Path) -> None:
    whole = plan.read_bytes()
    plan.write_bytes({**DAMAGES, "short": lambda data: data[:-1]}[damage](whole))
    with pytest.raises(DamagedFile, match=f"{plan} is damaged"):
        list(read_plan_tables(str(plan)))


def test_tasks_find_what_is_damaged_of_their_row_group(plan: Path) -> None:
    whole = plan.read_bytes()
    chunk = pq.read_metadata(plan).row_group(3).column(2)  # addresses of the members
    place = chunk.data_page_offset + chunk.total_compressed_size - 1
    plan.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert len(list(read_shards_of_group(str(plan), 2, [0]))) == 1
    with pytest.raises(DamagedFile, match=f"{plan} is damaged"):
        list(read_shards_of_group(str(plan), 3, [0]))


def test_errors_of_the_storage_are_no_damage(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        error: Exception

        def read(self, size: int | None = -1) -> bytes:
            if self.tell() < 4 and size:
                raise self.error
            return super().read(size)

    for error in (ConnectionError("lost"), OSError(5, "input/output error"), MemoryError()):
        file = Broken(plan.read_bytes())
        file.error = error
        with monkeypatch.context() as patch, pytest.raises(type(error)) as raised:
            patch.setattr("pipeline.plan.shards.local_copy", lambda *_, file=file: file)
            list(read_plan_tables(str(plan)))
        assert raised.value is error
