"""A store that fails is not a mistake of the user, unless it has never answered."""

import os
from collections.abc import Iterator

import pytest

from pipeline.storage import retries
from pipeline.storage.errors import InputError, StorageUnavailable
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.files import open_location, read_object
from pipeline.storage.s3 import S3Files
from tests.chaos.faulty_store import FaultyStore


@pytest.fixture
def store(s3: None, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """A store that has one object, to a process that no store has answered yet."""
    fs, path = open_location(f"{bucket}/object", "OUTPUT")
    fs.pipe_file(path, b"content")
    proxy = FaultyStore(os.environ["AWS_ENDPOINT_URL"])
    with proxy.running():
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(retries, "_answered", False)
        monkeypatch.setattr(retries, "PATIENCE", 1.0)
        S3Files.clear_instance_cache()
        yield proxy
    S3Files.clear_instance_cache()


def read(bucket: str) -> bytes:
    with explain_errors("OUTPUT", bucket):
        return read_object(*open_location(f"{bucket}/object", "OUTPUT"))


def test_an_answer_of_500_is_no_mistake_of_the_user(bucket: str, store: FaultyStore) -> None:
    store.broken = "/object$"
    with pytest.raises(StorageUnavailable, match="run the same command again"):
        read(bucket)
    store.broken = ""
    assert read(bucket) == b"content"


def test_a_store_that_goes_away_is_no_mistake_of_the_user(bucket: str, store: FaultyStore) -> None:
    assert read(bucket) == b"content"
    store.gone = True
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        read(bucket)


def test_a_store_that_never_answered_may_be_misspelt(bucket: str, store: FaultyStore) -> None:
    store.gone = True
    with pytest.raises(InputError, match="cannot be reached"):
        read(bucket)


def test_a_missing_object_is_a_mistake_of_the_user(bucket: str, store: FaultyStore) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read(f"{bucket}/nothing")
