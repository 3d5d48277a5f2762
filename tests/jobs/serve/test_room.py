"""What a scope may store: its files and the answers of its batches are bounded."""

import errno
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from duckdb import DuckDBPyConnection
from openai import OpenAI, PermissionDeniedError

from jobs.serve.batches import batches, output, records, room
from jobs.serve.batches.files import PREFIX, Files
from jobs.serve.batches.records import Batch, Records, ended_as
from jobs.serve.batches.room import ORPHAN_SECONDS, Room, bytes_of, remove_orphans
from jobs.serve.batches.store import Store, folder_of_scope, new_id
from jobs.serve.engine.engine import Engine
from jobs.serve.http.keys import add_key
from jobs.serve.protocol.errors import ApiError
from jobs.serve.settings.settings import ApiSettings
from tests.support.batching import (
    StandingRun,
    batching,
    client_of,
    create,
    lines_of,
    request,
    wait_for,
)
from tests.support.serving import data_uri, scene_file, serving

CONTENT = b"a" * 4000


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path / "batches"))
    return Store(request.getfixturevalue("bucket"))


def upload(client: OpenAI) -> str:
    return client.files.create(file=("a.jsonl", CONTENT), purpose="batch").id


def test_files_of_a_scope_are_bounded(
    store: Store, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = str(tmp_path / "keys.json")
    ours, theirs = (add_key(keys, name)[1] for name in ("ours", "theirs"))
    settings = ApiSettings(keys=keys, max_stored_bytes=10_000)
    with serving(settings, engine, batches=store) as address:
        client, other = client_of(address, ours), client_of(address, theirs)
        first, _ = upload(client), upload(client)
        with pytest.raises(PermissionDeniedError, match="10000 are allowed: delete some") as error:
            upload(client)
        assert error.value.code == "storage_limit_exceeded"
        upload(other)
        client.files.delete(first)
        second = upload(client)
        monkeypatch.setattr(room, "MOST_FILES", 2)
        for make in (
            lambda: upload(client),
            lambda: client.batches.create(
                input_file_id=second, endpoint="/v1/chat/completions", completion_window="24h"
            ),
        ):
            with pytest.raises(PermissionDeniedError, match="are 2 files, and 2 are allowed"):
                make()


def test_what_comes_at_the_same_time_counts_together(store: Store) -> None:
    shared, files = Room(10_000), Files(store, "scope")
    with shared.taken(files, 6000):
        with pytest.raises(ApiError, match="would have 11000 bytes"), shared.taken(files, 5000):
            pass
        with shared.taken(Files(store, "other"), 9000), shared.taken(files, 4000):
            pass
    with shared.taken(files, 10_000):
        pass


def test_what_a_killed_server_left_is_removed_later(store: Store, tmp_path: Path) -> None:
    """A content without its document counts until nobody can still write the document."""
    content = tmp_path / "content"
    content.write_bytes(CONTENT)
    files = Files(store, "scope")
    kept = files.save(content, "a", "batch")
    old = f"{PREFIX}{int((time.time() - ORPHAN_SECONDS - 60) * 1000):012x}{'0' * 24}"
    for file_id in (old, new_id(PREFIX)):
        files.save(content, "a", "batch", file_id)
        store.remove(f"files/{folder_of_scope('scope')}/{file_id}/file.json")
    sizes = remove_orphans(files)
    assert old not in sizes and len(sizes) == 2 and files.sizes() == sizes
    assert 2 * len(CONTENT) < bytes_of(sizes) < 3 * len(CONTENT)
    assert bytes_of(sizes, without=[kept.id]) == len(CONTENT)


def test_answers_that_have_no_room_are_errors(tmp_path: Path, engine: Engine) -> None:
    image = data_uri(scene_file())
    lines = [request(f"line-{number}", [image]) for number in range(6)]
    with batching(str(tmp_path / "all"), engine) as address:
        client = client_of(address)
        batch = wait_for(client, create(client, lines))
        used = client.files.retrieve(batch.input_file_id).bytes
        answers = client.files.content(str(batch.output_file_id)).content
    half = ApiSettings(max_stored_bytes=used + len(answers) // 2 + 1000)
    with batching(str(tmp_path / "half"), engine, half) as address:
        client = client_of(address)
        batch = wait_for(client, create(client, lines))
        good = lines_of(client, batch.output_file_id)
        bad = lines_of(client, batch.error_file_id)
        stored_bytes = client.files.retrieve(str(batch.output_file_id)).bytes
        with pytest.raises(PermissionDeniedError):
            create(client, lines)
    assert 0 < len(good) < 6 and sorted([*good, *bad]) == [f"line-{n}" for n in range(6)]
    assert {line["error"]["code"] for line in bad.values()} == {"storage_limit_exceeded"}
    assert used + stored_bytes <= half.max_stored_bytes
    assert batch.status == "completed" and batch.request_counts is not None
    assert batch.request_counts.completed == len(good)
    assert batch.request_counts.failed == len(bad)


def test_the_documents_of_the_oldest_batches_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk: where versions are kept, moto lists the folders of deleted objects."""
    monkeypatch.setattr(records, "MOST_KEPT", 3)
    batches = Records(Store(str(tmp_path)), "scope")
    made = []
    for number in range(5):
        batch = Batch(
            id=f"{records.PREFIX}{number:036x}",
            endpoint="/v1/detections",
            input_file_id="file",
            status="validating",
            created_at=number,
            expires_at=number + 9,
        )
        batches.create(batch)
        made.append(batch.id)
        if number != 1:  # which is open still
            record = batches.record(batch.id)
            record.end(ended_as(batch, "completed"))
            record.close()
    found, _ = batches.list(10, None, "asc")
    assert [batch.id for batch in found] == [made[1], *made[3:]]


def test_errors_that_have_no_room_fail_the_batch(tmp_path: Path, engine: Engine) -> None:
    """Lines that fail were written whatever their size, far beyond the limit."""
    lines = [request(f"{number:03}" + "\u00e9" * 500, []) for number in range(40)]
    used = sum(len(json.dumps(line)) + 1 for line in lines)
    with batching(str(tmp_path), engine, ApiSettings(max_stored_bytes=used + 9000)) as address:
        client = client_of(address)
        batch = wait_for(client, create(client, lines))
        assert batch.status == "failed" and batch.errors is not None and batch.errors.data
        assert batch.errors.data[0].code == "storage_limit_exceeded"
        assert batch.error_file_id is None
        assert [file.id for file in client.files.list()] == [batch.input_file_id]


def test_answers_without_room_are_not_looked_up(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that stands in all places of all lines would be joined with its boxes for each."""
    asked = list[tuple[int, int]]()
    rows = output._rows

    def rows_and_count(connection: DuckDBPyConnection, first: int, last: int) -> Any:
        asked.append((first, last))
        return rows(connection, first, last)

    monkeypatch.setattr(output, "_rows", rows_and_count)
    monkeypatch.setattr(output, "IMAGES_AT_ONCE", 8)
    image = data_uri(scene_file())
    lines = [request(f"line-{number}", [image] * 4) for number in range(12)]
    with batching(str(tmp_path), engine) as address:
        client = client_of(address)
        batch = wait_for(client, create(client, lines))
        answers = client.files.content(str(batch.output_file_id)).content.splitlines()
    assert len(answers) == 12 and len(asked) == 6
    asked.clear()
    monkeypatch.setattr(output, "MOST_ANSWER_BYTES", len(answers[0]) * 4)
    with batching(str(tmp_path / "few"), engine) as address:
        client = client_of(address)
        batch = wait_for(client, create(client, lines))
        good = lines_of(client, batch.output_file_id)
        bad = lines_of(client, batch.error_file_id)
    assert len(good) == 3 and len(bad) == 9 and len(asked) == 3  # one is looked up ahead
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (12, 36)


def test_inputs_that_are_read_before_their_turn_are_bounded(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 batches of one file of 200 MB may wait, and each has a copy of its images."""
    monkeypatch.setattr(batches, "MOST_BYTES_READ", 1000)
    may_end = threading.Event()
    keys = str(tmp_path / "keys.json")
    ours, theirs = (add_key(keys, name)[1] for name in ("ours", "theirs"))
    settings = ApiSettings(keys=keys)
    place = str(tmp_path / "batches")
    with batching(place, engine, settings, lambda *_: StandingRun(may_end)) as address:
        client, other = client_of(address, ours), client_of(address, theirs)
        lines = [request("a", [data_uri(scene_file())])]
        made = [create(client, lines) for _ in range(4)]
        for batch in made[:2]:
            wait_for(client, batch, "in_progress")
        wait_for(other, create(other, lines), "in_progress")
        with_images = {path.parent.name for path in Path(place).glob("batches/*/*/images")}
        assert {batch.id for batch in made} & with_images == {batch.id for batch in made[:2]}
        for batch in made[2:]:
            assert client.batches.retrieve(batch.id).status == "validating"
        may_end.set()
        for batch in made:
            wait_for(client, batch, "failed")


def test_a_full_disk_of_temporary_files_is_no_mistake(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch goes on when there is room: it failed for good."""
    full = threading.Event()
    full.set()
    write = output.OutputFiles.write

    def write_to_disk(*arguments: Any) -> Any:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(output.OutputFiles, "write", write_to_disk)
    with batching(str(tmp_path), engine) as address:
        client = client_of(address)
        batch = create(client, [request("a", [data_uri(scene_file())])])
        wait_for(client, batch, "finalizing")
        time.sleep(1)
        assert client.batches.retrieve(batch.id).status == "finalizing"
        full.clear()
        assert wait_for(client, batch).status == "completed"
