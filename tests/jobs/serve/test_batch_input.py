"""What a batch asks `label` for, and which answers it finds again."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.serve.batches.input import LIST, WANTED, InputWriter
from jobs.serve.batches.lines import MOST_LINE_VALUES, InvalidInput, Line, Lines
from jobs.serve.batches.records import BatchError
from jobs.serve.batches.store import Store
from jobs.serve.protocol.parsing import MOST_VALUES
from jobs.serve.settings.settings import ApiSettings
from pipeline.plan.lists import read_url_list
from pipeline.storage.files import open_location
from pipeline.storage.image_hosts import ImageHosts
from pipeline.storage.urls import identity
from tests.support.batching import request
from tests.support.serving import MODEL, data_uri
from tests.support.web import served_files


def read_lines(lines: list[Any]) -> list[Line]:
    file = io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    return list(Lines(file, "/v1/detections", MODEL, 3))


def errors_of(lines: list[Any]) -> list[BatchError]:
    with pytest.raises(InvalidInput) as caught:
        read_lines(lines)
    return caught.value.errors


def write(folder: Path, lines: list[Any], hosts: ImageHosts) -> list[dict[str, Any]]:
    """Write the input of a batch, and return which images it wants."""
    with InputWriter(Store(str(folder)), "batch", ApiSettings(hosts=hosts)) as writer:
        for line in read_lines(lines):
            writer.add(line)
        writer.finish()
    rows: list[dict[str, Any]] = pq.read_table(folder / "batch" / WANTED).to_pylist()
    return rows


def test_images_are_found_again_by_the_names_that_label_gives(tmp_path: Path) -> None:
    """Addresses that differ in secrets alone, in case, fragments, queries and signs of UTF-8."""
    for name in ("a.jpg", "b c.jpg", "é.jpg"):
        (tmp_path / name).write_bytes(b"content")
    with served_files(tmp_path) as web:
        names = ["a.jpg", "a.jpg?id=1", "a.jpg?id=2&token=abc", "a.jpg?id=2&token=def"]
        names += [
            "a.jpg#part",
            "a.jpg#part&token=1",
            "a.jpg?id=2",
            "é.jpg",
            "b c.jpg",
            "%C3%A9.jpg",
        ]
        names += ["a.jpg?X-Amz-Signature=12ab", "a.jpg?X-Amz-Signature=34cd", "a.jpg?id=2#~2"]
        addresses = [f"{web}/{name}" for name in names]
        addresses += [web.replace("http", "HTTP") + "/a.jpg", data_uri(b"1"), data_uri(b"2")]
        lines = [request(str(n), [address]) for n, address in enumerate(addresses)]
        lines += [request("again", [addresses[2], addresses[-1]])]
        hosts = ImageHosts.of([web.removeprefix("http://")])
        wanted = [row["uri"] for row in write(tmp_path, lines, hosts)]
        members = read_url_list(*open_location(str(tmp_path / "batch" / LIST), "INPUT"))
        found = [identity(member.uri) for member, is_repeated in members if not is_repeated]
    assert sorted(set(wanted)) == sorted(found)
    assert wanted[-2:] == [wanted[2], wanted[len(addresses) - 1]]
    assert len(set(wanted)) == len(addresses)
    assert "token" not in "".join(wanted) and "12ab" not in "".join(wanted)


def test_a_line_of_too_many_values_is_not_parsed() -> None:
    bad = request("a", [MODEL])
    bad["body"]["images"] = [[]] * MOST_VALUES
    (line,) = read_lines([bad])  # the request fails alone
    assert line.error is not None and line.error.code == "too_many_values"
    bad["body"]["images"] = [{"": 0}] * (MOST_LINE_VALUES + 1)
    (error,) = errors_of([bad])
    assert (error.code, error.line) == ("too_many_values", 1)


def test_a_line_is_utf_8() -> None:
    text = json.dumps(request("é", [MODEL]), ensure_ascii=False)
    for charset, is_read in (("utf-8", True), ("utf-8-sig", True), ("utf-16", False)):
        file = io.BytesIO(text.encode(charset))
        if is_read:
            assert [one.custom_id for one in Lines(file, "/v1/detections", MODEL, 3)] == ["é"]
            continue
        with pytest.raises(InvalidInput) as caught:
            list(Lines(file, "/v1/detections", MODEL, 3))
        assert caught.value.errors[0].code == "invalid_json_line"


def test_many_addresses_differ_in_secrets_alone(tmp_path: Path) -> None:
    """The time is linear in their number."""
    urls = [f"https://a.com/image?token=abc{n}" for n in range(6000)]
    lines = [request(str(n), urls[n : n + 3]) for n in range(0, len(urls), 3)]
    assert len({row["uri"] for row in write(tmp_path, lines, ImageHosts())}) == len(urls)


def test_addresses_that_no_list_can_hold_are_refused_one_by_one(tmp_path: Path) -> None:
    bad = ["https://a.com/x\nhttps://b.com/y", " https://a.com/x", "https://", "ftp://a.com/x"]
    bad += ["https://a.com/" + "x" * 9000, "github://a/b", "zip://a::https://b.com/c", "# no"]
    bad += ["data:image/png,abc", "data:image/png;base64,%", "data:image/png;base64,"]
    bad += ["http://127.0.0.1/a", "http://[::1]/a", "http://169.254.169.254/", "s3://lake/a"]
    rows = write(tmp_path, [request(str(n), [one]) for n, one in enumerate(bad)], ImageHosts())
    assert all(row["code"] and row["message"] and row["uri"] is None for row in rows)
    assert len(rows) == len(bad) and not (tmp_path / "batch" / LIST).exists()


def test_errors_hide_secrets(tmp_path: Path) -> None:
    url = "http://user:hunter2@127.0.0.1/a?token=abcdef123"
    (row,) = write(tmp_path, [request("a", [url])], ImageHosts())
    assert row["code"] == "address_not_allowed"
    assert "hunter2" not in row["message"] and "abcdef123" not in row["message"]


def test_too_many_lines_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = read_lines([request("a", ["https://a.com/b"] * 4)])
    assert line.error is not None and line.error.code == "too_many_images"
    monkeypatch.setattr("jobs.serve.batches.lines.MOST_LINES", 2)
    lines = [request(str(n), ["https://a.com/b"]) for n in range(3)]
    (error,) = errors_of(lines)
    assert (error.code, error.line) == ("too_many_lines", 3)
    monkeypatch.setattr("jobs.serve.batches.lines.LONGEST_LINE", 20)
    (error,) = errors_of(lines)
    assert (error.code, error.line) == ("line_too_long", 1)


def test_the_first_errors_are_shown() -> None:
    errors = errors_of([{"custom_id": str(n)} for n in range(100)])
    assert [error.line for error in errors] == list(range(1, 21))
