"""A lake may be as deep as the system allows, and deeper."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem

from pipeline.plan.listing import LONG_PATH, LOST_FILES
from pipeline.plan.plan import plan_shards
from pipeline.plan.walk import LOST_AND_FOUND, walk
from pipeline.storage.files import InputError, open_location
from tests.support.samples import encoded, jpeg


def nest(root: Path, depth: int) -> list[int]:
    """Make `depth` folders, one in another, each with an image; return their descriptors."""
    descriptors = [os.open(root, os.O_RDONLY)]
    for level in range(depth):
        write_image(f"{level}.jpg", descriptors[-1])
        os.mkdir("d", dir_fd=descriptors[-1])
        descriptors.append(os.open("d", os.O_RDONLY, dir_fd=descriptors[-1]))
        if len(descriptors) > 2:
            os.close(descriptors.pop(0))
    return descriptors


def write_image(name: str, folder: int) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=folder)
    os.write(descriptor, jpeg())
    os.close(descriptor)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    while (tmp_path / "d").exists():  # one by one, since paths are too long and rmtree recurses
        below = tmp_path / "d" / "d"
        if below.exists():
            os.rename(below, tmp_path / "next")
        shutil.rmtree(tmp_path / "d")
        if (tmp_path / "next").exists():
            os.rename(tmp_path / "next", tmp_path / "d")


def test_images_in_deeply_nested_folders_are_planned(deep: Path) -> None:
    for descriptor in nest(deep, 1100):
        os.close(descriptor)
    found = plan_shards(str(deep))
    names = [member.uri.rsplit("/", 1)[-1] for shard in found.shards for member in shard.members]
    assert sorted(names) == sorted(f"{level}.jpg" for level in range(1100))
    assert found.left_out == {}
    first = next(iter(found.shards))
    assert {row["status"] for row in encoded(first)} == {"ok"}


@pytest.mark.slow
def test_folders_beyond_the_longest_path_are_counted(deep: Path) -> None:
    for descriptor in nest(deep, 2_500):
        os.close(descriptor)
    found = plan_shards(str(deep))
    planned = sum(len(shard.members) for shard in found.shards)
    assert found.left_out == {LONG_PATH: 1}
    assert 1000 < planned < 2_500
    rows = [row for shard in list(found.shards)[-2:] for row in encoded(shard)]
    assert {row["status"] for row in rows} == {"ok", "unreadable"}
    assert any("File name too long" in (row["error"] or "") for row in rows)


def test_order_is_that_of_names_folder_by_folder(tmp_path: Path) -> None:
    names = ["a.jpg", "a/z.jpg", "a/b/1.jpg", "a/b/2.jpg", "a-b/1.jpg", "b.jpg", "b/a.jpg"]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [str(Path(info["name"]).relative_to(tmp_path)) for info in walk(*located(tmp_path))]
    assert found == recursively(tmp_path, tmp_path)
    assert sorted(found) == sorted(names)


def located(path: Path) -> tuple[AbstractFileSystem, str]:
    return open_location(str(path), "INPUT")


def recursively(folder: Path, root: Path) -> list[str]:
    found = []
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        found += recursively(entry, root) if entry.is_dir() else [str(entry.relative_to(root))]
    return found


def test_folder_that_is_deleted_meanwhile_ends_no_walk(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"")
    found = []
    for info in walk(*located(tmp_path)):
        found.append(Path(info["name"]).parent.name)
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
    assert found == ["a"]


@contextmanager
def disk_with(private: str) -> Iterator[Path]:
    """A folder that everyone may read, with one inside that only root may; as another user."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder)
        disk.chmod(0o755)
        (disk / "a.jpg").write_bytes(jpeg())
        (disk / private).mkdir(mode=0)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)
        try:
            yield disk
        finally:
            os.seteuid(user)
            (disk / private).chmod(0o700)


def test_what_only_root_may_read_on_a_disk_is_counted() -> None:
    with disk_with(LOST_AND_FOUND) as disk:
        found = plan_shards(str(disk))
        assert found.left_out == {LOST_FILES: 1}
        assert [len(shard.members) for shard in found.shards] == [1]


def test_another_folder_that_may_not_be_read_ends_the_planning() -> None:
    """Its images would count as gone."""
    with disk_with("photos") as disk, pytest.raises(InputError, match="forbidden"):
        plan_shards(str(disk))
