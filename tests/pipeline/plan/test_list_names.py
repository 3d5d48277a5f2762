"""Lists as real tools write them: encodings, line ends, quotes, columns of Parquet files."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.plan import list_names
from pipeline.plan.lists import is_list, read_url_list
from pipeline.plan.plan import plan_shards
from pipeline.storage.files import InputError, open_location, open_object
from tests.support.logs import listen
from tests.support.samples import encoded, jpeg, write_tar
from tests.support.web import QuietHandler, served


def names(path: Path) -> list[str]:
    """The names of the listed objects below the folder of the list, each once."""
    fs, root = open_location(str(path), "INPUT")
    return [
        member.uri.removeprefix(f"file://{path.parent}/")
        for member, is_repeated in read_url_list(fs, root)
        if not is_repeated
    ]


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", b"\xef\xbb\xbf"),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-16-le", b""),
        ("utf-32-le", b"\xff\xfe\0\0"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_texts_of_all_encodings_are_lists(
    encoding: str, mark: bytes, end: str, tmp_path: Path
) -> None:
    lines = ["# comment", "a.jpg", "  # indented", "\t b c.jpg\t", "", "   ", "d.jpg  "]
    lines += ['"e f.jpg"', "'g.jpg'", "h'i'.jpg"]
    (tmp_path / "list.txt").write_bytes(mark + end.join(lines).encode(encoding))
    assert names(tmp_path / "list.txt") == [
        "a.jpg", "b c.jpg", "d.jpg", "e f.jpg", "g.jpg", "h'i'.jpg",
    ]  # fmt: skip


def test_lists_that_were_joined_have_marks_in_their_middle(tmp_path: Path) -> None:
    text = "\ufeffa.jpg\n".encode() * 2 + "\ufeffé.jpg\u2028x.jpg".encode()
    (tmp_path / "LIST.TXT").write_bytes(text)
    assert names(tmp_path / "LIST.TXT") == ["a.jpg", "é.jpg\u2028x.jpg"]
    assert is_list(*open_location(str(tmp_path / "LIST.TXT"), "INPUT"))


def test_names_of_local_files_may_be_no_utf8(tmp_path: Path) -> None:
    name = b"caf\xe9 \xff.jpg"
    (tmp_path / os.fsdecode(name)).write_bytes(jpeg())
    (tmp_path / "literal\\xe9.jpg").write_bytes(jpeg(1))
    (tmp_path / "list.txt").write_bytes(name + b"\nliteral\\xe9.jpg\n")
    shards = plan_shards(str(tmp_path / "list.txt")).shards
    rows = [row for shard in shards for row in encoded(shard)]
    assert {row["image_id"].rsplit("/", 1)[-1]: row["status"] for row in rows} == {
        "caf\\xe9 \\xff.jpg": "ok",
        "literal\\x5cxe9.jpg": "ok",
    }
    (tmp_path / "list.txt").unlink()
    rows = [row for shard in plan_shards(str(tmp_path)).shards for row in encoded(shard)]
    assert {row["status"] for row in rows} == {"ok"}


def test_names_of_web_objects_may_be_no_utf8(tmp_path: Path) -> None:
    class Latin(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/caf%E9.jpg" else 404)
            self.end_headers()
            self.wfile.write(jpeg())

    with served(Latin) as base:
        (tmp_path / "list.txt").write_bytes(f"{base}/caf".encode() + b"\xe9.jpg")
        (shard,) = plan_shards(str(tmp_path / "list.txt")).shards
        (row,) = encoded(shard)
    assert (row["uri"], row["status"]) == (f"{base}/caf%E9.jpg", "ok")


def test_file_urls_are_percent_encoded_unless_a_file_has_that_name(tmp_path: Path) -> None:
    for name in ("a b.jpg", "c%20d.jpg", "c d.jpg", "é.jpg", "e#f?.jpg"):
        (tmp_path / name).write_bytes(jpeg())
    lines = [
        f"file://{tmp_path}/a%20b.jpg",
        f"file://{tmp_path}/c%20d.jpg",
        f"file://{tmp_path}/%C3%A9.jpg",
        f"FILE://localhost{tmp_path}/e%23f%3F.jpg",
        f"file:{tmp_path}/c d.jpg",
        f"file://{tmp_path}/gone%20.jpg",
        f"{tmp_path}/a%20b.jpg",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    assert statuses(tmp_path / "list.txt") == {
        "a b.jpg": "ok",
        "c%20d.jpg": "ok",
        "é.jpg": "ok",
        "e#f?.jpg": "ok",
        "c d.jpg": "ok",
        "gone%20.jpg": "unreadable",
        "a%20b.jpg": "unreadable",
    }


def statuses(path: Path) -> dict[str, str]:
    rows = [row for shard in plan_shards(str(path)).shards for row in encoded(shard)]
    return {row["uri"].rsplit("/", 1)[-1]: row["status"] for row in rows}


@pytest.mark.parametrize("text", ["", "\n \n", "# only\n  # comments\n", "\ufeff"])
def test_an_empty_list_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match="names nothing: write one address or path on each line"):
        plan_shards(str(tmp_path / "list.txt"))
    pq.write_table(pa.table({"url": pa.array([None, " "], pa.string())}), tmp_path / "l.parquet")
    with pytest.raises(InputError, match="names nothing"):
        plan_shards(str(tmp_path / "l.parquet"))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "list.txt"
    pq.write_table(pa.table({"url": [f"http://h/{i}.jpg" for i in range(999)]}), target)
    contents = [target.read_bytes(), jpeg(), write_tar(target, {"a.jpg": jpeg()}).read_bytes()]
    for content in contents:
        target.write_bytes(content)
        with pytest.raises(InputError, match=r"list\.txt is no text"):
            plan_shards(str(target))
    target.write_text("x" * (list_names.LONGEST_LINE + 1))
    with pytest.raises(InputError, match="line 1 of the list"):
        plan_shards(str(target))


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
)
@pytest.mark.parametrize("column", ["url", "URL", "image_url", "ImageURL", "img-url", "Path"])
def test_addresses_are_found_in_parquet_files(
    column: str, kind: pa.DataType, tmp_path: Path
) -> None:
    table = {
        "caption": ["a", "b", "c", "d"],
        column: pa.array(["a.jpg", " a.jpg ", None, ""], pa.string()).cast(kind),
        "meta": [{"width": 1}] * 4,
        "embedding": pa.array([[0.5, 1.0]] * 4, pa.list_(pa.float32())),
        "sha256": pa.array([b"\x01" * 32] * 4, pa.binary(32)),
    }
    pq.write_table(pa.table(table), tmp_path / "l.parquet")
    assert is_list(*open_location(str(tmp_path / "l.parquet"), "INPUT"))
    assert names(tmp_path / "l.parquet") == ["a.jpg"]


def test_columns_of_images_come_before_addresses(tmp_path: Path) -> None:
    source = tmp_path / "p.parquet"
    urls = ["http://h/1.jpg", "http://h/2.jpg"]
    for column in (
        pa.array([jpeg(), jpeg(1)]),
        pa.array([{"bytes": jpeg(), "path": "1"}, None]),
    ):
        pq.write_table(pa.table({"url": urls, "picture": column}), source)
        assert not is_list(*open_location(str(source), "INPUT"))
        (shard,) = plan_shards(str(source)).shards
        assert shard.kind == "parquet"
        (shard,) = plan_shards(str(source), format="urls").shards
        assert [member.uri for member in shard.members] == urls
    # The driver reads no page of a file that anybody may have written.
    pq.write_table(pa.table({"url": urls, "payload": [b"no image", b"nor this"]}), source)
    assert not is_list(*open_location(str(source), "INPUT"))


def test_the_column_that_is_taken_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen(list_names.__name__, caplog, monkeypatch)
    table = {"image_url": ["b.jpg"], "URL": ["a.jpg"], "uri": [3], "path": ["c.jpg"]}
    pq.write_table(pa.table(table), tmp_path / "l.parquet")
    assert names(tmp_path / "l.parquet") == ["a.jpg"]
    assert "addresses are read from column URL, not from image_url, path" in caplog.text


def test_long_lists_are_read_as_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reader asks for more than it needs at a time."""
    pieces: list[int] = []

    class Counting:
        def __init__(self, file: Any):
            self.file = file

        def read1(self, size: int = -1) -> bytes:
            pieces.append(size)
            return bytes(self.file.read1(size))

        def __enter__(self) -> "Counting":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    source = tmp_path / "list.txt"
    source.write_text("\n".join(f"{number:08}.jpg" for number in range(100_000)))
    monkeypatch.setattr(
        "pipeline.plan.list_names.open_object", lambda *place: Counting(open_object(*place))
    )
    found = list_names.names_in_text(*open_location(str(source), "INPUT"))
    assert [next(found), next(found)] == ["00000000.jpg", "00000001.jpg"]
    assert sum(1 for _ in found) == 99_998
    assert pieces and max(pieces) <= 1 << 20


@pytest.fixture
def by_token() -> Iterator[str]:
    """A server whose image is chosen by the token."""

    class ByToken(QuietHandler):
        def do_GET(self) -> None:
            token = self.path.partition("token=")[2].partition("&")[0]
            body = jpeg(int(token or 0))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{token}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

    with served(ByToken) as address:
        yield address


def test_addresses_that_differ_in_secrets_alone_are_images_of_their_own(
    by_token: str, tmp_path: Path
) -> None:
    host = by_token.removeprefix("http://")
    lines = {
        f"{by_token}/a.jpg?token=1": f"{by_token}/a.jpg",
        f"{by_token}/a.jpg?token=2": f"{by_token}/a.jpg#~2",
        f"{by_token}/a.jpg": f"{by_token}/a.jpg#~3",
        f"{by_token}/a.jpg?token=3": f"{by_token}/a.jpg#~4",
        f"http://me:pass1@{host}/b.jpg?token=4": f"{by_token}/b.jpg",
        f"http://me:pass2@{host}/b.jpg?token=5": f"{by_token}/b.jpg#~2",
        f"{by_token}/c.jpg?token=6#part": f"{by_token}/c.jpg#part",
        f"{by_token}/c.jpg?token=7#part": f"{by_token}/c.jpg#part&~2",
        f"{by_token}/a.jpg?id=5&sig=8": f"{by_token}/a.jpg?id=5",
        f"{by_token}/a.jpg?id=5&sig=9": f"{by_token}/a.jpg?id=5#~2",
        f"{by_token}/d.jpg#~2": f"{by_token}/d.jpg#~2",
        f"{by_token}/d.jpg?token=1": f"{by_token}/d.jpg",
        f"{by_token}/d.jpg?token=2": f"{by_token}/d.jpg#~3",
    }
    (tmp_path / "list.txt").write_text("\n".join([*lines, *lines]))
    plan = plan_shards(str(tmp_path / "list.txt")).shards
    rows = [row for shard in plan for row in encoded(shard)]
    assert [row["image_id"] for row in rows] == list(lines.values())
    assert {row["status"] for row in rows} == {"ok"}
    tokens = [line.partition("token=")[2].partition("#")[0] for line in lines]
    assert [bytes(row["encoded"]) for row in rows] == [jpeg(int(token or 0)) for token in tokens]


def test_objects_of_other_stores_have_no_numbers(tmp_path: Path) -> None:
    lines = [
        "az://c@account/a.jpg?sv=1&sig=aaaa",
        "az://c@account/a.jpg?sv=1&sig=bbbb",
        "a.jpg",
        "./a.jpg",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    assert len(names(tmp_path / "list.txt")) == 2
