"""A list names objects of accepted kinds; a bad address costs one row, never the list."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.plan.listing import REPEATED
from pipeline.plan.lists import absolute_url
from pipeline.plan.plan import left_out_as_text, plan_shards
from pipeline.storage.files import InputError, open_location
from tests.support.samples import encoded, jpeg, write_tar
from tests.support.web import served_files


def rows_of(source: str | Path, **options: Any) -> dict[str, dict[str, Any]]:
    shards = plan_shards(str(source), **options).shards
    return {row["image_id"]: row for shard in shards for row in encoded(shard)}


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address at which `tmp_path` is served."""
    with served_files(tmp_path) as address:
        yield address


BAD = [
    "gopher://host/a.jpg",
    "memory://a.jpg",
    "github://owner:repository@main/a.jpg",
    "reference://a.jpg",
    "sftp://host/a.jpg",
    "local:///etc/hostname",
    "zip://a.jpg::file:///etc/hostname",
    "zip://a.tar::file:///etc/hostname.tar",
    "http://[bad/a.jpg?x=@",
    "http://[bad/a.tar",
    "http://host:99999/a.jpg",
    "http:///a.jpg",
    "https://user@:80/a.parquet",
]
ODD_NAMES = ["simplecache::s3://b/a.jpg", "data:image/png;base64,AAAA", "x" * 5000, "a\0b.jpg"]


def test_addresses_that_are_not_accepted_cost_a_row_each(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "list.txt").write_text("\n".join([*BAD, *ODD_NAMES, "a.jpg"]))
    rows = rows_of(tmp_path / "list.txt")
    assert len(rows) == len(BAD) + len(ODD_NAMES) + 1
    assert [row["status"] for row in rows.values()].count("unreadable") == len(rows) - 1
    assert rows[f"file://{tmp_path}/a.jpg"]["status"] == "ok"
    said = [row["error"] for row in rows.values() if row["error"]]
    assert sum("cannot be opened" in text and ": " in text for text in said) >= len(BAD)
    assert sum("is none of file://, http://" in text for text in said) == 8


def test_no_process_opens_an_address_that_is_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file exists, and fsspec would open it."""
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    write_tar(tmp_path / "a.tar", {"a.jpg": jpeg()})
    addresses = [
        f"simplecache::file://{tmp_path}/secret.jpg",
        f"tar://a.jpg::file://{tmp_path}/a.tar",
        f"dir://secret.jpg::file://{tmp_path}",
    ]
    (tmp_path / "list.txt").write_text("\n".join(addresses))
    assert {row["status"] for row in rows_of(tmp_path / "list.txt").values()} == {"unreadable"}
    for address in addresses[1:]:
        with pytest.raises(InputError, match="is none of"):
            open_location(address, "INPUT")


def test_colons_are_a_part_of_names(tmp_path: Path, bucket: str) -> None:
    names = ["zip::a.jpg", "a::b.jpg", "memory::c.tar"]
    (tmp_path / "lake").mkdir()
    fs, path = open_location(bucket, "INPUT")
    for name in names:
        target = tmp_path / "lake" / name
        target.write_bytes(jpeg())
        if name.endswith(".tar"):
            write_tar(target, {"x.jpg": jpeg()})
        fs.pipe_file(f"{path}/{name}", target.read_bytes())
    (tmp_path / "list.txt").write_text("\n".join(f"{bucket}/{name}" for name in names))
    for source, base in (
        (tmp_path / "lake", f"file://{tmp_path}/lake"),
        (bucket, bucket),
        (tmp_path / "list.txt", bucket),
    ):
        rows = rows_of(source)
        assert set(rows) == {f"{base}/zip::a.jpg", f"{base}/a::b.jpg", f"{base}/memory::c.tar#x"}
        assert {row["status"] for row in rows.values()} == {"ok"}


def test_protocols_are_accepted_in_any_case(web: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "list.txt").write_text(
        f"{web.replace('http', 'HTTP')}/a.jpg\nFile://{tmp_path}/a.jpg"
    )
    rows = rows_of(tmp_path / "list.txt")
    assert {name: row["status"] for name, row in rows.items()} == {
        f"{web}/a.jpg": "ok",
        f"file://{tmp_path}/a.jpg": "ok",
    }


@pytest.mark.parametrize("store", ["web", "bucket"])
def test_remote_list_opens_no_local_file(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(store)
    (tmp_path / "lists").mkdir()
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    write_tar(tmp_path / "secret.tar", {"x.jpg": jpeg()})
    names = [
        f"{tmp_path}/secret.jpg",
        f"file://{tmp_path}/secret.jpg",
        f"FILE://{tmp_path}/secret.tar",
        f"//{tmp_path}/secret.tar",
        "a.jpg",
        "../lists/b.jpg",
        "../../../../c.jpg",
    ]
    for name, content in {
        "lists/list.txt": "\n".join(names).encode(),
        "lists/a.jpg": jpeg(),
        "lists/b.jpg": jpeg(),
    }.items():
        if store == "web":
            (tmp_path / name).write_bytes(content)
        else:
            fs, path = open_location(f"{base}/{name}", "INPUT")
            fs.pipe_file(path, content)
    for options in ({}, {"limit": 7}):
        rows = rows_of(f"{base}/lists/list.txt", **options)
        assert [rows[f"{base}/lists/{name}.jpg"]["status"] for name in "ab"] == ["ok", "ok"]
        local = [row for row in rows.values() if "is a local file" in (row["error"] or "")]
        assert len(local) == 4
        assert {row["status"] for row in local} == {"unreadable"}
        (climber,) = [row for name, row in rows.items() if name.endswith("/c.jpg")]
        assert climber["uri"].startswith(("http://127", base.rsplit("/", 1)[0]))


def test_local_list_may_name_any_file(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "lists" / "list.txt").write_text(f"../a.jpg\n{tmp_path}/lists/../a.jpg")
    rows = rows_of(tmp_path / "lists" / "list.txt")
    assert {name: row["status"] for name, row in rows.items()} == {f"file://{tmp_path}/a.jpg": "ok"}


@pytest.mark.parametrize(
    ("name", "folder", "url"),
    [
        ("a.jpg", "s3://b/x", "s3://b/x/a.jpg"),
        ("../a.jpg", "s3://b/x", "s3://b/a.jpg"),
        ("../../../a.jpg", "s3://b/x/y", "s3://b/a.jpg"),
        ("../a.jpg", "s3://b", "s3://b/a.jpg"),
        ("./c/../a.jpg", "s3://b/x//y", "s3://b/x//y/a.jpg"),
        ("../a.jpg", "http://h/x", "http://h/a.jpg"),
        ("../a.jpg", "file:///x", "file:///x/../a.jpg"),
        ("S3://b/../a", "file:///x", "S3://b/../a"),
        ("/a.jpg", "file:///x", "/a.jpg"),
        ("//me:SECRET@h/a.jpg", "file:///x", "//h/a.jpg"),
        ("//me:SEC@RET@h/a.jpg", "s3://b/x", "//h/a.jpg"),
        ("//h/me:you@a.jpg", "file:///x", "//h/me:you@a.jpg"),
    ],
)
def test_relative_names_are_below_the_folder_of_their_list(
    name: str, folder: str, url: str
) -> None:
    assert absolute_url(name, folder) == url


def test_list_behind_a_signed_address_names_what_lies_beside_it(web: str, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.jpg").write_bytes(jpeg())
    (tmp_path / "lists" / "list.txt").write_text("a.jpg\n")
    pq.write_table(pa.table({"url": ["a.jpg", None, " "]}), tmp_path / "lists" / "list.parquet")
    for name in ("list.txt", "list.parquet"):
        rows = rows_of(f"{web}/lists/{name}?signature=a/b", format="urls")
        assert {row["status"] for row in rows.values()} == {"ok"}
        assert set(rows) == {f"{web}/lists/a.jpg"}


def test_list_without_a_column_of_text_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": [1, 2]}), tmp_path / "list.parquet")
    with pytest.raises(InputError, match="no column of text named url or uri"):
        plan_shards(str(tmp_path / "list.parquet"), format="urls")


def test_probe_reads_an_object_that_the_listing_saw(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "list.txt").write_text("gopher://x/1.jpg\nmissing.jpg\na.jpg\n")
    found = plan_shards(str(tmp_path / "list.txt")).shards.first_member()
    assert found.uri == f"file://{tmp_path}/a.jpg"


def test_entries_that_name_an_object_again_are_counted(web: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    names = ["a.jpg", "a.jpg", f"{tmp_path}/a.jpg", f"file://{tmp_path}/a.jpg"]
    names += [f"{web}/a.jpg?sig=x", f"{web}/a.jpg?sig=x", f"{web}/a.jpg?sig=y", "missing.jpg"]
    names += ["missing.jpg", "gopher://x/1.jpg", "gopher://x/1.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    found = plan_shards(str(tmp_path / "list.txt"))
    assert found.left_out == {REPEATED: 6}
    assert left_out_as_text(found.left_out, found.first_left_out) == (
        f"entries of the list that name an object again (6, the first is file://{tmp_path}/a.jpg)"
    )
    assert sorted(member.uri for shard in found.shards for member in shard.members) == [
        f"file://{tmp_path}/a.jpg",
        f"file://{tmp_path}/missing.jpg",
        "gopher://x/1.jpg",
        f"{web}/a.jpg?sig=x",
        f"{web}/a.jpg?sig=y#~2",
    ]
