"""The body of a web object decides, whatever HEAD says of it."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.formats import files
from pipeline.formats.read import read_rows
from pipeline.plan.plan import plan_shards
from pipeline.schema import Member, Shard
from tests.support.samples import jpeg
from tests.support.web import QuietHandler, served

IMAGE = jpeg()
PAGE = b"<html>please log in</html>"


def tar_of_image() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("x.jpg")
        entry.size = len(IMAGE)
        archive.addfile(entry, io.BytesIO(IMAGE))
    return file.getvalue()


def parquet_of_image() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"image": [IMAGE]}), file)
    return file.getvalue()


class Odd(QuietHandler):
    """Answers HEAD in another way than GET. The way is the first part of the path."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        way = self.path.split("/")[1]
        if way == "cut":
            self.close_connection = True
            return
        if way == "none":
            self.answer(200, {})
        else:
            lengths = {"zero": 0, "less": 10, "more": len(IMAGE) + 999, "huge": 1 << 40}
            length = lengths.get(way, len(PAGE))
            status = int(way) if way.isdecimal() else 200
            self.answer(status, {"Content-Length": str(length), "ETag": '"p"'})

    def do_GET(self) -> None:
        way = self.path.split("/")[1]
        body = {"x.tar": tar_of_image(), "x.parquet": parquet_of_image()}.get(
            self.path.split("/")[-1], IMAGE
        )
        headers = {"ETag": '"i"'}
        if way in ("gzip", "deflate"):
            body = gzip.compress(body) if way == "gzip" else zlib.compress(body)
            headers["Content-Encoding"] = way
        elif way == "label":
            headers["Content-Encoding"] = "gzip"
        elif way == "unknown":
            headers["Content-Encoding"] = "x-own"
        if way == "chunked":
            self.answer(200, {**headers, "Transfer-Encoding": "chunked"})
            for start in range(0, len(body), 1000):
                part = body[start : start + 1000]
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
            return
        if way == "until-end":
            self.close_connection = True
        else:
            headers["Content-Length"] = str(len(body))
        self.answer(200, headers)
        if way == "short":
            self.close_connection = True
            self.wfile.write(body[:-1])
        else:
            self.wfile.write(body)

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture(scope="module")
def odd() -> Iterator[str]:
    with served(Odd) as address:
        yield address


def rows_of(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    (folder / "list.txt").write_text("\n".join(names))
    shards = plan_shards(str(folder / "list.txt")).shards
    return [row for shard in shards for row in read_rows(shard, 0)]


WAYS = ["zero", "less", "more", "huge", "page", "405", "403", "501", "404", "500", "cut", "none",
        "gzip", "deflate", "label", "unknown", "chunked", "until-end"]  # fmt: skip


def test_images_are_read_whatever_head_says(odd: str, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [f"{odd}/{way}/x.jpg" for way in WAYS])
    assert [(row["uri"].split("/")[-2], row["status"]) for row in rows] == [
        (way, "ok") for way in WAYS
    ]
    assert all(bytes(row["encoded"]) == IMAGE for row in rows)


def test_archives_are_read_whatever_head_says(odd: str, tmp_path: Path) -> None:
    names = [f"{odd}/{way}/x.{end}" for way in WAYS for end in ("tar", "parquet")]
    rows = rows_of(tmp_path, names)
    assert {row["status"] for row in rows} == {"ok"}
    assert len(rows) == len(names)
    assert all(bytes(row["encoded"]) == IMAGE for row in rows)


def test_a_body_that_ends_early_is_not_taken_for_the_image(
    odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.retries.PATIENCE", 1.0)
    rows = rows_of(tmp_path, [f"{odd}/short/x.jpg", f"{odd}/page/x.jpg"])
    assert [row["status"] for row in rows] == ["unavailable", "ok"]
    assert rows[0]["retries"] + rows[1]["retries"] > 0


def test_a_body_above_the_limit_is_not_read(
    odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_ENCODED_BYTES", 1000)
    rows = rows_of(tmp_path, [f"{odd}/{way}/x.jpg" for way in ("page", "chunked", "gzip")])
    assert {row["status"] for row in rows} == {"too_large"}
    assert rows[0]["error"].startswith(f"{len(IMAGE)} bytes are more than ")


class Nothing(QuietHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET


def test_an_empty_body_is_an_empty_file(tmp_path: Path) -> None:
    with served(Nothing) as address:
        (row,) = rows_of(tmp_path, [f"{address}/x.jpg"])
    assert row["status"] == "empty_file"


class Endless(QuietHandler):
    """Answers with zeros until nobody reads them."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(bytes(1 << 20))


def test_an_archive_without_an_end_leaves_room_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy has no name, so that nothing of it stays behind."""
    room = iter(range(100, 0, -10))

    def disk_usage(_: str) -> SimpleNamespace:
        return SimpleNamespace(total=900, free=next(room))

    monkeypatch.setattr("pipeline.storage.web.shutil.disk_usage", disk_usage)
    with served(Endless) as address:
        member = Member(f"{address}/x.tar", "", -1)
        (row,) = read_rows(Shard("x", "tar", (member,)), 0)
    assert row["status"] == "unreadable"
    assert "x.tar is larger than the room in" in row["error"] and "TMPDIR" in row["error"]
