"""An object is read with one request, and requests that fail are repeated."""

import os
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from pipeline.storage.files import (
    S3_OPTIONS,
    InputError,
    canonical_url,
    open_location,
    open_self_retrying,
    read_object,
    write_whole,
)
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


@pytest.mark.parametrize(
    "address", ["s3://bucket/a::b", "S3A://bucket/zip::c", "/x/zip::a", "file:///a::b"]
)
def test_colons_are_a_part_of_a_path(address: str) -> None:
    _, path = open_location(address, "INPUT")
    assert path == address.split("://")[-1]


@pytest.mark.parametrize("what", ["INPUT", "OUTPUT"])
@pytest.mark.parametrize(
    "address",
    ["memory://a", "gopher://a", "zip://a::s3://b/c", "local://a", "https://", "http://h:x/a"],
)
def test_addresses_that_are_not_accepted_are_refused(address: str, what: str) -> None:
    with pytest.raises(InputError, match=rf"^{what} .* cannot be opened: "):
        open_location(address, what)
    with pytest.raises(InputError):
        open_self_retrying(address)


def test_options_in_an_address_reach_the_file_system() -> None:
    """fsspec derives them from the address; here that objects have versions."""
    assert open_location("s3://bucket/a?versionId=1", "INPUT")[0].version_aware
    assert not open_location("s3://bucket/a", "INPUT")[0].version_aware


def test_two_slashes_at_the_start_of_a_path_are_one(tmp_path: Path) -> None:
    """POSIX lets them differ, and an OUTPUT would hold each image twice."""
    assert canonical_url(f"/{tmp_path}") == canonical_url(str(tmp_path))
