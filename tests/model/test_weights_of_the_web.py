"""Weights of the web are fetched again when their server reports another version, or none."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.errors import CheckpointError, CheckpointUnavailable
from model.weights import cache_folder, find_weights
from tests.support.web import VersionedFile, served_files

FIRST, SECOND = b"weights 1", b"weights 2"
NIGHT, NEXT_NIGHT = "Mon, 23 Nov 2026 01:00:00 GMT", "Tue, 24 Nov 2026 01:00:00 GMT"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file() -> VersionedFile:
    return VersionedFile(FIRST)


@pytest.fixture
def url(file: VersionedFile) -> Iterator[str]:
    with file.served() as address:
        yield f"{address}/net.pth"


def cached_files() -> list[str]:
    return [file.name for file in cache_folder().rglob("*") if file.is_file()]


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}),
        ({"Last-Modified": NIGHT}, {"Last-Modified": NEXT_NIGHT}),
        ({"Content-MD5": "MQ=="}, {"Content-MD5": "Mg=="}),
        ({"Digest": "sha-256=MQ=="}, {"Digest": "sha-256=Mg=="}),
        ({}, {"ETag": '"2"'}),
    ],
)
def test_a_replaced_file_is_fetched_and_an_equal_one_is_not(
    before: dict[str, str],
    after: dict[str, str],
    length: bool,
    file: VersionedFile,
    url: str,
) -> None:
    file.headers, file.length = before, length
    path = find_weights(url)
    assert path.read_bytes() == FIRST
    assert path.suffix == ".pth"
    inode = path.stat().st_ino
    again = find_weights(url)
    assert (again == path and again.stat().st_ino == inode) or not before
    file.body, file.headers = SECOND, after
    assert find_weights(url).read_bytes() == SECOND
    assert path.read_bytes() == FIRST  # another process may be reading it
    file.body, file.headers = FIRST, before
    assert find_weights(url).read_bytes() == FIRST


def test_a_file_without_a_version_is_fetched_each_time(file: VersionedFile, url: str) -> None:
    fetches: list[bytes] = []
    file.before_body = lambda: fetches.append(file.body)
    for body in (FIRST, FIRST, SECOND, FIRST):
        file.body = body
        assert find_weights(url).read_bytes() == body
    assert fetches == [FIRST, FIRST, SECOND, FIRST]
    assert len(cached_files()) == 2


def test_a_file_that_is_replaced_while_it_is_fetched(file: VersionedFile, url: str) -> None:
    """The body that came is not taken for the version that was reported before."""
    file.headers = {"ETag": '"1"'}

    def replace() -> None:
        file.body, file.headers = SECOND, {"ETag": '"2"'}

    file.before_body = replace
    assert find_weights(url).read_bytes() == SECOND
    file.before_body = lambda: None
    file.body, file.headers = FIRST, {"ETag": '"1"'}
    assert find_weights(url).read_bytes() == FIRST


def test_a_copy_that_an_earlier_version_named_by_its_address(file: VersionedFile, url: str) -> None:
    file.headers = {"ETag": '"2"'}
    find_weights(url)
    (folder,) = cache_folder().iterdir()
    (folder / "0123456789abcdef.pth").write_bytes(b"old weights")
    assert find_weights(url).read_bytes() == FIRST


def test_a_body_that_breaks_off_leaves_no_file(file: VersionedFile, url: str) -> None:
    file.sent = 3
    with pytest.raises(CheckpointUnavailable):
        find_weights(url)
    assert cached_files() == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_last_copy_is_used_while_the_server_fails(
    status: int, file: VersionedFile, url: str
) -> None:
    file.headers = {"ETag": '"1"'}
    find_weights(url)
    file.status = status
    assert find_weights(url).read_bytes() == FIRST
    with pytest.raises(CheckpointUnavailable, match=str(status)):
        find_weights(f"{url}?other")
    with pytest.raises(CheckpointUnavailable) as caught:
        find_weights(f"{url}?token=5ecret%3A12")  # aiohttp decodes some signs
    assert "5ecret" not in str(caught.value)


def test_the_last_copy_is_the_one_that_was_used_last(file: VersionedFile, url: str) -> None:
    """New weights were taken back."""
    for night, (body, etag) in enumerate([(FIRST, "1"), (SECOND, "2")]):
        file.body, file.headers = body, {"ETag": etag}
        os.utime(find_weights(url), (night, night))
    file.body, file.headers = FIRST, {"ETag": "1"}
    assert find_weights(url).read_bytes() == FIRST
    file.status = 503
    assert find_weights(url).read_bytes() == FIRST


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_file_that_is_gone_is_an_error(status: int, file: VersionedFile, url: str) -> None:
    file.headers = {"ETag": '"1"'}
    find_weights(url)
    file.status = status
    with pytest.raises(CheckpointError, match=f"the server answers {status}") as caught:
        find_weights(url)
    assert not isinstance(caught.value, CheckpointUnavailable)


def test_a_server_that_delivers_no_parts(tmp_path: Path) -> None:
    """Like `python -m http.server`. The file is longer than fsspec's blocks of 5 MiB."""
    content = os.urandom(6 << 20)
    (tmp_path / "net.safetensors").write_bytes(content)
    with served_files(tmp_path) as address:
        assert find_weights(f"{address}/net.safetensors").read_bytes() == content
