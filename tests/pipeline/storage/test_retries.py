"""Which requests are repeated, and for how long."""

import time
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from pipeline.storage import retries
from pipeline.storage.files import list_files, open_location, read_object
from pipeline.storage.retries import is_transient, repeat_while, retry
from pipeline.storage.s3 import S3Files


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PATIENCE", 60.0), ("PATIENCE_AT_FIRST", 2.0), ("FIRST_PAUSE", 0.01)):
        monkeypatch.setattr(retries, name, value)
    for name, value in (("person_waits", True), ("_answered", False), ("repeated", 0)):
        monkeypatch.setattr(retries, name, value)


def test_a_misspelt_endpoint_is_said_soon_whatever_disks_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("a")
    for key, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("ACCESS_KEY_ID", "k")):
        monkeypatch.setenv(f"AWS_{key}", value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    S3Files.clear_instance_cache()
    local, path = open_location(str(tmp_path), "OUTPUT")
    assert list(list_files(local, path)) and read_object(local, f"{path}/a") == b"a"
    fs, place = open_location("s3://lake/photos", "INPUT")
    began = time.monotonic()
    with pytest.raises(Exception, match="Could not connect"):
        list_files(fs, place)
    S3Files.clear_instance_cache()
    assert 0.5 < time.monotonic() - began < 30
    assert retries.repeated >= 1


class Flaky:
    """Raises an error for the first calls, then answers."""

    def __init__(self, failures: int, error: Exception):
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "answer"


def test_what_passes_is_repeated_and_counted() -> None:
    assert retry(Flaky(3, ConnectionResetError())) == "answer"
    assert retries.repeated == 3


@pytest.mark.parametrize("error", [FileNotFoundError(), PermissionError(), ValueError()])
def test_what_says_something_about_the_object_is_not(error: Exception) -> None:
    flaky = Flaky(1, error)
    with pytest.raises(type(error)):
        retry(flaky)
    assert flaky.calls == 1 and retries.repeated == 0


def test_repetition_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "LONGEST_PAUSE", 0.02)
    flaky = Flaky(1000, TimeoutError())
    with pytest.raises(TimeoutError):
        retry(flaky)
    assert flaky.calls == retries.ATTEMPTS


def test_a_first_request_that_stands_still_has_a_second_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "PATIENCE_AT_FIRST", 0.0)
    assert retry(Flaky(1, TimeoutError())) == "answer"
    with pytest.raises(TimeoutError):
        retries._answered = False
        retry(Flaky(2, TimeoutError()))


def test_requests_are_repeated_only_while_a_condition_holds() -> None:
    flaky = Flaky(9, TimeoutError())
    with pytest.raises(TimeoutError), repeat_while(lambda: flaky.calls < 4):
        retry(flaky)
    assert flaky.calls == 4
    assert retry(flaky) == "answer"


@pytest.mark.parametrize(("status", "passes"), [(500, True), (501, False), (503, True)])
def test_what_a_store_never_implements_is_asked_for_once(status: int, passes: bool) -> None:
    error = ClientError(
        {"Error": {"Code": "any"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )
    assert is_transient(error) is passes
