"""Whoever can write OUTPUT cannot fill the memory of its readers."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.output import documents
from jobs.output.documents import parse_json, read_document_bytes, seal, unseal
from jobs.output.errors import DamagedOutput
from jobs.output.run_documents import score_threshold
from jobs.output.store import OutputStore
from pipeline.storage.files import open_location

RUN = "20260101T000000Z-aaaaaa"


@pytest.mark.parametrize("data", [b"[" * 100_000, b"9" * 5000, b'{"format": 1e999}', b"\xff", b""])
def test_documents_that_python_cannot_parse_are_damaged(data: bytes) -> None:
    with pytest.raises(DamagedOutput, match="x of OUTPUT is damaged"):
        unseal("x", data)


@pytest.mark.parametrize("bound", ["MOST_BYTES", "MOST_VALUES"])
def test_large_documents_are_neither_written_nor_parsed(
    bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"values": [[number] for number in range(100)]}
    data = seal(content)
    assert unseal("x", data) == content
    monkeypatch.setattr(documents, bound, 90)
    with pytest.raises(DamagedOutput, match="x of OUTPUT is damaged"):
        unseal("x", data)
    with pytest.raises(ValueError, match=f"a document of {len(data)} bytes is larger"):
        seal(content)
    assert parse_json(b'{"a": 1}') == {"a": 1}


def test_no_more_is_read_than_a_document_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file of a terabyte is read up to the bound."""
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(documents, "MOST_BYTES", 1000)
    data = OutputStore(str(tmp_path)).read("huge")
    assert len(data) == 1001
    with pytest.raises(DamagedOutput):
        unseal("huge", data)


def test_documents_of_a_bucket_are_read_whole(bucket: str) -> None:
    """Also empty ones, of which a store has no range."""
    fs, path = open_location(bucket, "OUTPUT")
    for content in (b"", b"x", b"{}" * 1000):
        fs.pipe_file(f"{path}/document", content)
        assert read_document_bytes(fs, f"{path}/document") == content
    with pytest.raises(FileNotFoundError):
        read_document_bytes(fs, f"{path}/absent")


@pytest.mark.parametrize("options", [{"score_threshold": "high"}, [], 5, {"score_threshold": [1]}])
def test_records_without_a_digest_may_hold_anything(options: Any, tmp_path: Path) -> None:
    file = tmp_path / "_runs" / RUN / "run.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"options": options}))
    with pytest.raises(DamagedOutput, match=f"{RUN}/run.json of OUTPUT is damaged"):
        score_threshold(str(tmp_path), RUN)
