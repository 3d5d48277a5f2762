"""Keys: who gets in, what each may use up, and what becomes of a key that is revoked."""

import json
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from openai import OpenAI

from jobs.cli import main
from jobs.serve.engine.engine import Engine
from jobs.serve.http import keys
from jobs.serve.http.keys import KeyRing, add_key, digest_of, read_keys, revoke_key
from jobs.serve.http.limits import WINDOW, Windows
from jobs.serve.settings.settings import ApiSettings
from pipeline.storage.errors import InputError, StorageUnavailable
from pipeline.storage.urls import mask
from tests.support.serving import MODEL, data_uri, scene_file, serving


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "keys.json")


@pytest.fixture
def guarded(file: str, engine: Engine) -> Iterator[str]:
    """An endpoint that needs keys; `file` has one with the name `first`."""
    add_key(file, "first")
    with serving(ApiSettings(keys=file), engine) as address:
        yield address


def client(address: str, key: str, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key=key, **{"max_retries": 0, **options})


def test_a_key_is_kept_as_a_hash_in_a_private_file(file: str) -> None:
    key, secret = add_key(file, "a", images_per_minute=5)
    text = Path(file).read_text()
    assert secret not in text and digest_of(secret) in text
    assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
    assert read_keys(file) == [key] and len(secret) >= 43 and secret not in mask(f"is {secret} ok")
    add_key(file, "b")
    assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
    with pytest.raises(InputError, match="there is a key with the name a"):
        add_key(file, "a")


def test_a_revoked_key_stays_in_the_list_and_its_name_is_free(file: str) -> None:
    key, _ = add_key(file, "a")
    revoke_key(file, key.id)
    with pytest.raises(InputError, match="no valid key"):
        revoke_key(file, "a")
    add_key(file, "a")
    assert [one.revoked is None for one in read_keys(file)] == [False, True]


def test_keys_that_are_added_at_once_are_all_there(file: str) -> None:
    threads = [threading.Thread(target=add_key, args=(file, str(n))) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(file)} == {str(n) for n in range(6)}


def test_keys_in_a_bucket(bucket: str) -> None:
    url = f"{bucket}/keys.json"
    add_key(url, "a")
    _, secret = add_key(url, "b", scope="team")
    revoke_key(url, "a")
    assert [(key.name, key.revoked is None) for key in read_keys(url)] == [
        ("a", False),
        ("b", True),
    ]
    caller = KeyRing(url).caller(secret)
    assert caller is not None and caller.scope == "team"


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"format": 1, "keys": [{}]}',
        "\xff",
        DEEP,
        '{"keys": []}',
        '{"format": 2, "keys": []}',
    ],
)
def test_a_file_that_holds_no_keys_is_refused(file: str, content: str) -> None:
    Path(file).write_text(content, encoding="latin-1")
    for act in (lambda: read_keys(file), lambda: add_key(file, "a")):
        with pytest.raises(InputError, match="no file of keys"):
            act()
    with pytest.raises(InputError, match="does not exist"):
        read_keys(file + "x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sha256", None),
        ("sha256", "é" * 64),
        ("requests_per_minute", "x"),
        ("images_per_minute", -1),
        ("scope", None),
        ("scope", ["a"]),
        ("revoked", True),
        ("admin", True),
    ],
)
def test_a_key_with_a_value_that_it_cannot_have_is_refused(
    file: str, name: str, value: object
) -> None:
    add_key(file, "a")
    document = json.loads(Path(file).read_text())
    document["keys"][0][name] = value
    Path(file).write_text(json.dumps(document))
    with pytest.raises(InputError, match=rf"no file of keys .*keys: 0: {name}"):
        read_keys(file)


def test_keys_that_cannot_be_read_any_more_open_nothing(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = add_key(file, "a")
    ring = KeyRing(file)
    assert ring.caller(secret) is not None and ring.caller(secret + "x") is None
    monkeypatch.setattr(keys, "STALE_SECONDS", -1.0)
    with pytest.raises(StorageUnavailable):
        ring.caller(secret)


def test_a_server_whose_keys_cannot_be_read_is_not_ready(
    guarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert requests.get(f"{guarded}/health/ready").status_code == 200
    monkeypatch.setattr(keys, "STALE_SECONDS", -1.0)
    answer = requests.get(f"{guarded}/health/ready")
    assert answer.status_code == 503 and "keys" in answer.json()["error"]["message"]


def test_the_command_prints_the_key_once(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-keys", "add", file, "--name", "ann", "--requests-per-minute", "7"]) == 0
    secret = capsys.readouterr().out.strip()
    assert KeyRing(file).caller(secret) is not None
    assert main(["serve-keys", "list", file]) == 0
    listed = capsys.readouterr().out
    assert "ann" in listed and "7 requests/min" in listed and secret not in listed
    assert main(["serve-keys", "list", file, "--json"]) == 0
    assert "sha256" not in json.loads(capsys.readouterr().out)[0]
    assert main(["serve-keys", "revoke", file, "ann"]) == 0
    assert KeyRing(file).caller(secret) is None
    assert main(["serve-keys", "revoke", file, "ann"]) == 2
    assert main(["serve-keys", "add", file, "--name", "x", "--images-per-minute", "0"]) == 2


def test_without_a_valid_key_there_is_401(guarded: str) -> None:
    with pytest.raises(openai.AuthenticationError) as raised:
        client(guarded, "sk-detr-wrong").models.list()
    assert raised.value.code == "invalid_api_key" and raised.value.type == "authentication_error"
    for headers in ({}, {"authorization": "Basic eDp5"}, {"authorization": "Bearer "}):
        answer = requests.get(f"{guarded}/v1/models", headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "missing_api_key"
        assert answer.headers["www-authenticate"] == "Bearer" and answer.headers["x-request-id"]
    for path in ("/health/live", "/", "/metrics", "/openapi.json"):
        assert requests.get(guarded + path).status_code == 200


def test_a_running_server_learns_of_new_and_revoked_keys(
    guarded: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "REREAD_SECONDS", 0.05)
    time.sleep(2.1)  # for the pause that has begun
    _, secret = add_key(file, "second")
    good = Path(file).read_bytes()
    Path(file).write_text(DEEP)
    time.sleep(0.5)
    Path(file).write_bytes(good)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            assert client(guarded, secret).models.list().data
            break
        except openai.AuthenticationError:
            time.sleep(0.02)
    revoke_key(file, "second")
    time.sleep(0.5)
    with pytest.raises(openai.AuthenticationError):
        client(guarded, secret).models.list()


def test_requests_are_limited_by_the_minute(guarded: str, file: str, engine: Engine) -> None:
    _, secret = add_key(file, "limited", requests_per_minute=3)
    _, other = add_key(file, "other", requests_per_minute=3)
    with serving(ApiSettings(keys=file), engine) as address:
        for left in (2, 1, 0):
            raw = client(address, secret).models.with_raw_response.list()
            assert raw.headers["x-ratelimit-limit-requests"] == "3"
            assert raw.headers["x-ratelimit-remaining-requests"] == str(left)
            assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
        with pytest.raises(openai.RateLimitError, match="3 requests in a minute") as raised:
            client(address, secret).models.list()
        headers = raised.value.response.headers
        assert 0 < int(headers["retry-after-ms"]) <= 60_000
        assert 0 < int(headers["retry-after"]) <= 60 and raised.value.code == "rate_limit_exceeded"
        assert client(address, other).models.list().data


def test_images_are_limited_by_the_minute(file: str, engine: Engine) -> None:
    _, secret = add_key(file, "limited", images_per_minute=3)
    image = data_uri(scene_file())
    with serving(ApiSettings(keys=file), engine) as address:
        asking = client(address, secret)

        def send(count: int) -> Any:
            content: Any = [{"type": "image_url", "image_url": {"url": image}}] * count
            return asking.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": content}]
            )

        assert send(2).headers["x-ratelimit-remaining-images"] == "1"
        with pytest.raises(openai.RateLimitError, match="has 1 left"):
            send(2)
        assert send(1).headers["x-ratelimit-remaining-images"] == "0"
        asking.max_retries = 5  # a request that can never pass is not repeated
        began = time.monotonic()
        with pytest.raises(openai.RateLimitError, match="send fewer"):
            send(4)
        assert time.monotonic() - began < 2


def test_the_client_waits_as_long_as_it_is_told(
    file: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.serve.http.limits.WINDOW", 1.0)
    _, secret = add_key(file, "limited", requests_per_minute=1)
    with serving(ApiSettings(keys=file), engine) as address:
        asking = client(address, secret, max_retries=2)
        began = time.monotonic()
        assert asking.models.list().data and asking.models.list().data
        assert 0.5 < time.monotonic() - began < 4


def test_a_minute_begins_with_its_first_request() -> None:
    now = 100.0
    windows = Windows(lambda: now)
    assert windows.take("k", "requests", 2, 1).left == 1
    now += 59
    last = windows.take("k", "requests", 2, 1)
    assert (last.left, last.reset, last.taken) == (0, 1.0, True)
    assert not windows.take("k", "requests", 2, 1).taken
    assert windows.take("k", "images", 2, 2).taken and windows.take("l", "requests", 2, 1).taken
    now += WINDOW - 59
    assert windows.take("k", "requests", 2, 1).left == 1
