"""How many requests reading takes of a store, and what becomes of those that fail."""

import os

import pytest
from s3fs import S3FileSystem

from pipeline.storage.files import S3_OPTIONS, open_location, read_object, write_whole
from tests.chaos.faulty_store import FaultyStore


def test_an_object_is_read_by_one_request_also_where_it_is_missing(bucket: str) -> None:
    fs, path = open_location(f"{bucket}/some", "INPUT")
    fs.pipe_file(path, b"content")
    proxy = FaultyStore(os.environ["AWS_ENDPOINT_URL"])
    with proxy.running():
        fs = S3FileSystem(endpoint_url=proxy.url, **S3_OPTIONS)
        assert read_object(fs, path) == b"content"
        assert read_object(fs, path, 4) == b"cont"
        with pytest.raises(FileNotFoundError):
            read_object(fs, f"{path}-missing")
    assert [method for method, _ in proxy.requests] == ["GET"] * 3


@pytest.mark.parametrize("kind", ["slow_down", "error", "reset", "lost_answer", "cut"])
def test_a_request_that_fails_is_repeated(
    kind: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.retries.FIRST_PAUSE", 0.01)
    proxy = FaultyStore(os.environ["AWS_ENDPOINT_URL"], seed=1)
    proxy.kinds = (kind,)
    with proxy.running():
        fs = S3FileSystem(endpoint_url=proxy.url, **S3_OPTIONS)
        fs.retries = 1  # as `open_location` does
        _, path = open_location(f"{bucket}/some", "INPUT")
        proxy.rate = 0.4
        for size in (-1, 1000) * 5:
            write_whole(fs, path, bytes(1000))
            assert read_object(fs, path, size) == bytes(1000)
    assert proxy.injected[kind] > 2
