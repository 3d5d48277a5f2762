"""What a scope may store: its files and the answers of its batches are bounded."""

import time
from pathlib import Path

import pytest
from openai import OpenAI, PermissionDeniedError

from jobs.serve.batches import records, room
from jobs.serve.batches.files import PREFIX, Files
from jobs.serve.batches.records import Batch, Records, ended_as
from jobs.serve.batches.room import ORPHAN_SECONDS, Room, stored
from jobs.serve.batches.store import Store, new_id
from jobs.serve.engine.engine import Engine
from jobs.serve.http.keys import add_key
from jobs.serve.protocol.errors import ApiError
from jobs.serve.settings.settings import ApiSettings
from tests.support.batching import batching, client_of, create, lines_of, request, wait_for
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
        store.remove(f"{files.folder}/{file_id}/file.json")
    count, used = stored(files)
    assert count == 2 and 2 * len(CONTENT) < used < 3 * len(CONTENT)
    assert old not in files.sizes() and len(files.sizes()) == 2
    assert stored(files, without=[kept.id]) == (1, len(CONTENT))


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
