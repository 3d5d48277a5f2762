"""Every image under INPUT is planned once, whatever its name; other files are not planned."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.formats.read import read_rows
from pipeline.plan.digests import (
    Objects,
    consume_into_known,
    digest_versions,
    digests,
    find_names,
    find_positions,
)
from pipeline.plan.listing import HIDDEN, NO_IMAGE
from pipeline.plan.plan import plan_shards
from pipeline.plan.shards import read_plan_tables, tables_of_shards, write_shards
from pipeline.schema import Member, Shard
from pipeline.storage.files import InputError
from tests.support.samples import encoded, jpeg, prepared, write_tar
from tests.support.web import QuietHandler, served


def test_links_and_names_of_cameras_are_seen(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "_DSC0001.JPG").write_bytes(jpeg())
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real" / "_DSC0001.JPG")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "_notes.json").write_text("{}")
    found = {Path(row["image_id"]).name: row["status"] for row in prepared(tmp_path)}
    assert found == {"gone.jpg": "unreadable", "link.jpg": "ok", "_DSC0001.JPG": "ok"}


def test_output_within_input_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    output = tmp_path / "labels"
    (output / "images").mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), output / "images" / "part.parquet")
    found = plan_shards(str(tmp_path), output=str(output))
    assert [shard.kind for shard in found.shards] == ["files"]
    assert found.left_out == {}


@pytest.mark.parametrize(
    ("limit", "limits", "images"),
    [(3, [3], 3), (5, [None], 5), (8, [None, 3], 8), (99, [None] * 3, 11)],
)
def test_limit_counts_what_archives_hold(
    limit: int, limits: list[int | None], images: int, tmp_path: Path
) -> None:
    write_tar(tmp_path / "a.tar", {f"{i}.jpg": jpeg(i) for i in range(5)})
    pq.write_table(pa.table({"jpg": [jpeg()] * 5}), tmp_path / "b.parquet")
    (tmp_path / "c.tar").write_bytes(b"no archive")
    shards = plan_shards(str(tmp_path), limit=limit).shards
    assert [shard.limit for shard in shards] == limits
    assert sum(len(encoded(shard)) for shard in shards) == images


def test_plan_leaves_out_what_is_known_and_survives_storage(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.png", "sub/note.txt", ".hidden/c.jpg", ".d.jpg", "misnamed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg())
    whole = plan_shards(str(tmp_path))
    (shard,) = whole.shards
    members = shard.members
    names = [member.uri.removeprefix(f"file://{tmp_path}/") for member in members]
    assert names == ["a.jpg", "misnamed", "sub/b.png"]
    assert whole.left_out == {NO_IMAGE: 1, HIDDEN: 2}
    whole.shards.write_to(str(tmp_path / "kept" / "plan.parquet"))
    again = write_shards(read_plan_tables(str(tmp_path / "kept" / "plan.parquet")))
    assert list(again) == [shard]
    seen = consume_into_known(
        [Objects(digest_versions([(members[0].uri, members[0].etag)]))], lambda: iter([])
    )
    (rest,) = plan_shards(str(tmp_path), known=seen, output=str(tmp_path / "kept")).shards
    assert len(rest.members) == 2


def test_objects_are_known_by_both_halves_of_their_digests() -> None:
    among = np.array([[1, 5], [2, 1], [2, 3], [2, 8], [9, 0]], np.uint64).T
    wanted = np.array([[2, 8], [2, 4], [9, 0], [9, 1], [0, 5], [1, 5], [2, 1], [7, 7]], np.uint64).T
    assert find_positions(wanted, among).tolist() == [3, -1, 4, -1, -1, 0, 1, -1]


def test_the_last_labels_of_an_object_are_known_and_the_names_of_those_that_left(
    tmp_path: Path,
) -> None:
    nights = [
        Objects(digest_versions([("x", "1"), ("y", "1"), ("z", "2")])),
        Objects(digest_versions([("y", "3"), ("x", "1")]), of_input=False),
        Objects(digest_versions([("z", "2")]), labelled=False),
    ]
    night = consume_into_known(
        nights, lambda: iter([pa.array(["x", "y", "x"]), pa.array(["y", "z"])])
    )
    at = find_positions(digests("xyz"), night.uris)
    assert (night.etags[:, at] == digests(["1", "3", "2"])).all()
    assert night.labelled[at].tolist() == [True, True, False]
    assert night.of_input.all()
    assert find_names(night.uris, night.names).to_pylist() == ["x", "y", "z"]


def test_missing_and_empty_input_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        plan_shards(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nothing to label"):
        plan_shards(str(tmp_path))


def test_list_of_urls(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "list.txt").write_text(f"# photos\na.jpg\n\n{tmp_path}/gone.jpg\na.jpg\n")
    rows = prepared(tmp_path / "list.txt")
    assert [row["status"] for row in rows] == ["ok", "unreadable"]


class Answers(QuietHandler):
    """Answers with an image at /ok, and at other paths with the status in the path."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        body = jpeg() if self.path.startswith("/ok") else b""
        self.send_response(200 if body else int(self.path.strip("/").split(".")[0]))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def web() -> Iterator[str]:
    with served(Answers) as address:
        yield address


def test_list_of_places_of_many_kinds(web: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    write_tar(tmp_path / "t.tar", {"x.jpg": jpeg()})
    lines = [f"{web}/ok.jpg?size=large", f"{web}/404.jpg", f"{web}/403.jpg", "a.jpg", "./a.jpg"]
    (tmp_path / "list.txt").write_text("\n".join([*lines, "t.tar"]))
    rows = {row["image_id"]: row["status"] for row in prepared(tmp_path / "list.txt")}
    assert rows == {
        f"{web}/ok.jpg?size=large": "ok",
        f"{web}/404.jpg": "unreadable",
        f"{web}/403.jpg": "unreadable",
        f"file://{tmp_path}/a.jpg": "ok",
        f"file://{tmp_path}/t.tar#x": "ok",
    }


def test_a_server_in_trouble_costs_what_it_does_not_deliver(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.retries.PATIENCE", 1.0)
    members = tuple(Member(f"{web}/{name}", "e", -1) for name in ("ok.jpg", "503.jpg"))
    rows = list(read_rows(Shard("list", "files", members), 0))
    assert [row["status"] for row in rows] == ["ok", "unavailable"]
    (row,) = read_rows(Shard("tar", "tar", (Member(f"{web}/503.tar", "e", -1),)), 0)
    assert (row["status"], row["image_id"]) == ("unavailable", f"{web}/503.tar")
    assert "503" in row["error"]


def test_an_archive_that_takes_too_long_to_count_is_limited_where_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", {f"{i}.jpg": jpeg(i) for i in range(3)})
    write_tar(tmp_path / "b.tar", {"b.jpg": jpeg()})
    monkeypatch.setattr("pipeline.plan.plan.COUNT_SECONDS", 0.01)
    (shard,) = plan_shards(str(tmp_path), limit=2).shards
    assert shard.limit == 2 and len(encoded(shard)) == 2


def test_images_too_large_to_be_read_are_no_work() -> None:
    """Estimates and progress count what is read: an archive of that size, but not an image."""
    members = {"files": [10, -1, 300 << 30], "tar": [300 << 30]}
    shards = [
        Shard(kind, kind, tuple(Member(f"file:///{kind}/{n}", "e", n) for n in sizes))
        for kind, sizes in members.items()
    ]
    assert write_shards(tables_of_shards(shards)).size == 10 + (300 << 30)
