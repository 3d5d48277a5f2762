"""How many requests reading takes of a store."""

import os

import pytest
from s3fs import S3FileSystem

from pipeline.storage.files import S3_OPTIONS, open_location, read_object
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
