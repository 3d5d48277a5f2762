"""Links and special files in a lake are labelled as what they lead to, or counted with a reason."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.plan.digests import Known, Objects, consume_into_known, digest_versions
from pipeline.plan.listing import HIDDEN, LINKED_FOLDER, NO_IMAGE, SPECIAL
from pipeline.plan.plan import plan_shards
from pipeline.plan.walk import MOST_LINKS
from pipeline.schema import Member
from pipeline.storage.files import InputError
from tests.support.samples import encoded, jpeg, write_tar

LATER = 2_000_000_000  # seconds since 1970


def statuses(source: Path) -> dict[str, str]:
    """The status of each image by the last part of its id."""
    shards = plan_shards(str(source)).shards
    rows: list[dict[str, Any]] = [row for shard in shards for row in encoded(shard)]
    return {row["image_id"].rsplit("/", 1)[-1]: row["status"] for row in rows}


def planned(source: Path) -> list[Member]:
    return [member for shard in plan_shards(str(source)).shards for member in shard.members]


def known_of(members: list[Member]) -> Known:
    versions = digest_versions((member.uri, member.etag) for member in members)
    return consume_into_known([Objects(versions)], lambda: iter([]))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder with an image and two archives, which are older than the links to them."""
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg())
    write_tar(folder / "t.tar", {"x.jpg": jpeg(1)})
    for path in folder.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return folder


@pytest.fixture
def lake(store: Path, tmp_path: Path) -> Path:
    """A folder of links to the files in `store`, and of a hard link to the image."""
    folder = tmp_path / "lake"
    folder.mkdir()
    (folder / "link.jpg").symlink_to(store / "a.jpg")
    (folder / "again.jpg").symlink_to(folder / "link.jpg")
    (folder / "link.tar").symlink_to(Path("..", "store", "t.tar"))
    os.link(store / "a.jpg", folder / "hard.jpg")
    return folder


def test_images_behind_links_are_labelled_and_known_the_next_time(lake: Path) -> None:
    assert statuses(lake) == {
        "link.jpg": "ok",
        "again.jpg": "ok",
        "hard.jpg": "ok",
        "link.tar#x": "ok",
    }
    found = plan_shards(str(lake), known=known_of(planned(lake)))
    assert (len(found.shards), found.known, found.changed) == (0, 4, 0)


def test_links_in_a_list_have_the_version_that_a_folder_gives_them(lake: Path) -> None:
    in_folder = {member.uri: member.etag for member in planned(lake)}
    (lake / "list.txt").write_text("link.jpg\nagain.jpg\nhard.jpg\nlink.tar\n")
    assert {member.uri: member.etag for member in planned(lake / "list.txt")} == in_folder
    (single,) = planned(lake / "link.tar")
    assert single.etag == in_folder[single.uri]


def test_versions_of_files_are_those_of_earlier_releases(store: Path) -> None:
    """Other versions would label every object of every OUTPUT again."""
    time = 1_700_000_000_123_456_789  # nanoseconds
    os.utime(store / "a.jpg", ns=(time, time))
    (member,) = planned(store / "a.jpg")
    assert member.etag == f"{int((time / 1e9) * 1e9)}-{len(jpeg())}"
    assert member in planned(store)


@pytest.mark.parametrize("nanoseconds", [1, 999, 123_456_789, 999_999_999])
def test_odd_times_of_change_make_no_image_changed(nanoseconds: int, lake: Path) -> None:
    time = 1_700_000_000 * 10**9 + nanoseconds
    os.utime(lake / "hard.jpg", ns=(time, time))
    assert set(statuses(lake).values()) == {"ok"}


def test_input_may_be_a_link(lake: Path, tmp_path: Path) -> None:
    (tmp_path / "input").symlink_to(lake)
    assert statuses(tmp_path / "input") == statuses(lake)
    (tmp_path / "one.jpg").symlink_to(lake / "link.jpg")
    assert statuses(tmp_path / "one.jpg") == {"one.jpg": "ok"}


def test_target_that_is_replaced_after_the_listing_is_changed(lake: Path, store: Path) -> None:
    shards = list(plan_shards(str(lake)).shards)
    (store / "b.jpg").write_bytes(jpeg())  # the same bytes, but another file
    os.utime(store / "b.jpg", (LATER, LATER))
    (lake / "link.jpg").unlink()
    (lake / "link.jpg").symlink_to(store / "b.jpg")
    write_tar(store / "t.tar", {"x.jpg": jpeg(2)})
    rows = [row for shard in shards for row in encoded(shard)]
    found = {row["uri"].rsplit("/", 1)[-1]: row["status"] for row in rows}
    assert found == {
        "again.jpg": "changed",
        "hard.jpg": "ok",
        "link.jpg": "changed",
        "link.tar": "changed",
    }
    assert len(planned(lake)) == 4


def test_link_to_nothing_is_a_row_and_is_labelled_once_it_leads_to_an_image(lake: Path) -> None:
    (lake / "gone.jpg").symlink_to(lake / "nowhere.jpg")
    (lake / "loop.jpg").symlink_to(lake / "loop.jpg")
    (lake / "gone.tar").symlink_to(lake / "nowhere.tar")
    (lake / "gone.txt").symlink_to(lake / "nowhere.txt")
    found = statuses(lake)
    broken = {"gone.jpg": "unreadable", "loop.jpg": "unreadable", "gone.tar": "unreadable"}
    assert found == {**broken, **statuses_without(found, *broken)}
    known = known_of(planned(lake))
    assert plan_shards(str(lake), known=known).known == 7
    (lake / "nowhere.jpg").write_bytes(jpeg())
    after = plan_shards(str(lake), known=known)
    names = [m.uri.rsplit("/", 1)[-1] for shard in after.shards for m in shard.members]
    assert (names, after.changed) == (["gone.jpg", "nowhere.jpg"], 1)


def statuses_without(found: dict[str, str], *names: str) -> dict[str, str]:
    rest = {name: status for name, status in found.items() if name not in names}
    assert set(rest.values()) == {"ok"}
    return rest


def test_what_is_passed_over_is_counted_with_its_reason(lake: Path, store: Path) -> None:
    (lake / "folder").symlink_to(store)
    (lake / "loop").symlink_to(lake)
    (lake / "notes.md").write_text("no image")
    (lake / ".hidden.jpg").write_bytes(jpeg())
    (lake / "_private").mkdir()
    (lake / "_private" / "a.jpg").write_bytes(jpeg())
    os.mkfifo(lake / "pipe.jpg")
    (lake / "zeros.jpg").symlink_to("/dev/zero")
    found = plan_shards(str(lake))
    assert found.left_out == {NO_IMAGE: 1, HIDDEN: 1, LINKED_FOLDER: 1, SPECIAL: 2}
    assert sum(len(shard.members) for shard in found.shards) == 7


def test_input_of_links_to_itself_alone_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "folder").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"nothing to label.*links to folders.*\(1: folder\)"):
        plan_shards(str(tmp_path / "lake"))


def test_links_to_folders_are_followed_but_not_in_circles(
    lake: Path, store: Path, tmp_path: Path
) -> None:
    (store / "deeper").mkdir()
    (store / "deeper" / "c.jpg").write_bytes(jpeg(3))
    (lake / "a_part").symlink_to(store / "deeper")
    (lake / "one").symlink_to(store)  # what holds it
    (lake / "two").symlink_to(store)  # the same folder
    (lake / "whole").symlink_to(tmp_path)  # what holds INPUT
    (store / "back").symlink_to(lake)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "b.jpg").write_bytes(jpeg(2))
    (tmp_path / "far" / "self").symlink_to(tmp_path / "far")
    (store / "far").symlink_to(tmp_path / "far")  # a link behind a link
    found = plan_shards(str(lake))
    names = {m.uri.removeprefix(f"file://{lake}/") for s in found.shards for m in s.members}
    of_store = {"a.jpg", "t.tar", "far/b.jpg", "deeper/c.jpg"}
    of_links = {f"{link}/{name}" for link in ("one", "two") for name in of_store}
    assert names == {"link.jpg", "again.jpg", "hard.jpg", "link.tar", "a_part/c.jpg", *of_links}
    assert found.left_out == {LINKED_FOLDER: 5}  # whole, and back and self behind one and two
    known = known_of(planned(lake))
    assert plan_shards(str(lake), known=known).known == len(names)
    (lake / "a_first").symlink_to(store)  # another link changes no name
    assert plan_shards(str(lake), known=known).known == len(names)


def test_links_behind_links_have_an_end(tmp_path: Path) -> None:
    folders = [tmp_path / "lake", *(tmp_path / str(number) for number in range(20))]
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / "a.jpg").write_bytes(jpeg(number))
    for folder, following in itertools.pairwise(folders):
        (folder / "next").symlink_to(following)
    found = plan_shards(str(tmp_path / "lake"))
    assert sum(len(shard.members) for shard in found.shards) == 1 + MOST_LINKS
    assert found.left_out == {LINKED_FOLDER: 1}


@pytest.mark.parametrize("name", ["pipe.jpg", "pipe.tar", "pipe.parquet", "zeros.jpg", "zeros.tar"])
def test_special_file_in_a_list_is_a_row_at_once(name: str, tmp_path: Path) -> None:
    if name.startswith("pipe"):
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    (tmp_path / "list.txt").write_text(f"{name}\n")
    (shard,) = plan_shards(str(tmp_path / "list.txt")).shards
    (row,) = encoded(shard)
    assert row["status"] != "ok"
    assert "no regular file" in row["error"]
