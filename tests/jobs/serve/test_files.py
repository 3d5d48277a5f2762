"""`/v1/files` with OpenAI's client."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from jobs.serve.batches import files as serve_files
from jobs.serve.batches.store import Store
from jobs.serve.engine.engine import Engine
from jobs.serve.http.keys import add_key
from jobs.serve.settings.settings import ApiSettings
from pipeline.storage.errors import StorageUnavailable
from tests.support.batching import client_of
from tests.support.coroutines import run_coroutine
from tests.support.serving import serving

CONTENT = b'{"custom_id": "a"}\n' * 100


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the files are: a folder that does not exist yet, or a prefix in a bucket."""
    if request.param == "disk":
        return str(tmp_path / "batches")
    return str(request.getfixturevalue("bucket"))


@pytest.fixture
def client(store: str, engine: Engine) -> Iterator[OpenAI]:
    with serving(ApiSettings(), engine, batches=Store(store)) as address:
        yield client_of(address)


def upload(client: OpenAI, name: str = "requests.jsonl", content: bytes = CONTENT) -> str:
    return client.files.create(file=(name, content), purpose="batch").id


def test_a_file_is_listed_read_and_deleted(client: OpenAI) -> None:
    file_id = upload(client, "folder/requests.jsonl")
    found = client.files.retrieve(file_id)
    assert (found.filename, found.bytes, found.purpose) == ("requests.jsonl", len(CONTENT), "batch")
    assert [one.id for one in client.files.list()] == [file_id]
    assert client.files.content(file_id).content == CONTENT
    assert client.files.delete(file_id).deleted
    assert not client.files.list().data
    with pytest.raises(NotFoundError, match="no file"):
        client.files.content(file_id)


def test_pages_follow_one_another(client: OpenAI) -> None:
    ids = [upload(client, f"{number}.jsonl") for number in range(7)]
    assert [one.id for one in client.files.list(limit=3)] == ids[::-1]
    assert [one.id for one in client.files.list(limit=3, order="asc")] == ids
    page = client.files.list(limit=3)
    assert page.has_more and not client.files.list(limit=7).has_more
    assert not client.files.list(purpose="batch_output").data
    with pytest.raises(BadRequestError, match="after"):
        client.files.list(after="../../other")


def test_concurrent_uploads_all_arrive(client: OpenAI) -> None:
    contents = [b"%d\n" % number * 1000 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda content: upload(client, "a", content), contents))
    assert len(set(ids)) == len(contents)
    assert [client.files.content(one).content for one in ids] == contents


def test_bad_uploads_are_refused(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRequestError, match="purpose"):
        client.files.create(file=("a", b"a"), purpose="assistants")
    with pytest.raises(BadRequestError, match="empty"):
        upload(client, content=b"")
    with pytest.raises(BadRequestError, match="expires_after"):
        expires = {"anchor": "created_at", "seconds": 3600}
        client.files.create(file=("a", b"a"), purpose="batch", expires_after=expires)  # type: ignore[arg-type]
    answer = requests.post(f"{client.base_url}files", data={"purpose": "batch"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "file"
    assert requests.post(f"{client.base_url}files", data=b"a").status_code == 400
    monkeypatch.setattr("jobs.serve.batches.file_routes.MOST_BYTES", 10)
    with pytest.raises(APIStatusError, match="11 bytes") as caught:
        upload(client, content=b"a" * 11)
    assert caught.value.status_code == 413
    assert not client.files.list().data


def test_ids_lead_nowhere_else(client: OpenAI) -> None:
    upload(client)
    for name in ("file-", "..", "%2e%2e%2f%2e%2e", "file-..%2fcontent", "file-" + "0" * 36):
        answer = requests.get(f"{client.base_url}files/{name}")
        assert answer.status_code == 404, name


def test_an_upload_is_bounded_while_it_comes(tmp_path: Path, engine: Engine) -> None:
    settings = ApiSettings(max_upload_bytes=1 << 20)
    with serving(settings, engine, batches=Store(str(tmp_path))) as address:
        with pytest.raises(APIStatusError) as caught:
            upload(client_of(address), content=b"a" * (2 << 20))
        assert caught.value.status_code == 413


def test_another_scope_sees_nothing(tmp_path: Path, engine: Engine) -> None:
    keys = str(tmp_path / "keys.json")
    ours, theirs = (add_key(keys, name)[1] for name in ("ours", "theirs"))
    settings = ApiSettings(keys=keys)
    with serving(settings, engine, batches=Store(str(tmp_path / "batches"))) as address:
        file_id = upload(client_of(address, ours))
        other = client_of(address, theirs)
        assert not other.files.list().data
        for ask in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(NotFoundError):
                ask(file_id)
        assert client_of(address, ours).files.retrieve(file_id).id == file_id


def test_the_asynchronous_client(client: OpenAI) -> None:
    async def use() -> None:
        async with AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as other:
            some = [other.files.create(file=("a", CONTENT), purpose="batch") for _ in range(5)]
            made = {file.id for file in await asyncio.gather(*some)}
            assert {file.id async for file in other.files.list(limit=2)} == made
            content = await other.files.content(made.pop())
            assert content.content == CONTENT

    run_coroutine(use())


def test_a_file_that_is_not_saved_leaves_nothing(tmp_path: Path) -> None:
    class Full(Store):
        """A store that is full when the document shall be written."""

        def write(self, name: str, content: bytes | Path) -> None:
            if name.endswith("file.json"):
                raise StorageUnavailable("full")
            super().write(name, content)

    content = tmp_path / "a.jsonl"
    content.write_bytes(CONTENT)
    for store, name in (
        (Full(str(tmp_path / "full")), "a"),
        (Store(str(tmp_path / "b")), "\ud800"),
    ):
        with pytest.raises((StorageUnavailable, ValueError)):
            serve_files.Files(store, "scope").save(content, name, "batch")
        assert not [path for path in Path(store.url).rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("given", "plain"),
    [("a.jsonl", "a.jsonl"), ("..\\..\\a", "a"), ("/etc/passwd", "passwd"), (None, "upload.jsonl")],
)
def test_names_have_no_folders(given: str | None, plain: str) -> None:
    assert serve_files.plain_name(given) == plain
