"""Weights are fetched from URLs and the hub: once, and again when they change."""

import hashlib
import time
from itertools import count
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import constants

from model.errors import CheckpointError, CheckpointUnavailable
from model.weights import PROTOCOLS, cache_folder, find_weights, is_resolvable
from pipeline.storage.files import open_location
from pipeline.storage.protocols import PROTOCOLS as OBJECT_PROTOCOLS
from tests.support.web import served_files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_url_is_fetched_once_and_again_when_it_changed(bucket: str) -> None:
    fs, path = open_location(bucket, "INPUT")
    fs.pipe_file(f"{path}/net.safetensors", b"first")
    url = f"{bucket}/net.safetensors"
    first = find_weights(url)
    assert first.read_bytes() == b"first"
    assert first.suffix == ".safetensors"
    assert first.is_relative_to(cache_folder())
    inode = first.stat().st_ino
    assert find_weights(url) == first
    assert first.stat().st_ino == inode
    fs.pipe_file(f"{path}/net.safetensors", b"second one")
    fs.invalidate_cache()
    assert find_weights(url).read_bytes() == b"second one"


def test_sha256_of_a_url_is_checked(bucket: str) -> None:
    fs, path = open_location(bucket, "INPUT")
    fs.pipe_file(f"{path}/net.pth", b"content")
    right = hashlib.sha256(b"content").hexdigest()
    assert find_weights(f"{bucket}/net.pth#sha256={right.upper()}").read_bytes() == b"content"
    with pytest.raises(CheckpointError, match=f"has sha256 {right}, not the 00"):
        find_weights(f"{bucket}/net.pth#sha256={'0' * 64}")


def test_missing_object_gives_an_error_of_one_line(bucket: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be fetched from s3://") as caught:
        find_weights(f"{bucket}/nothing.pth")
    assert "\n" not in str(caught.value)


def test_last_copy_is_used_while_the_store_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "net.bin"
    source.write_bytes(b"weights")
    assert find_weights(f"file://{source}").read_bytes() == b"weights"

    def raise_no_route(self: LocalFileSystem, path: str) -> None:
        raise ConnectionError("no route to the store")

    monkeypatch.setattr(LocalFileSystem, "info", raise_no_route)
    assert find_weights(f"file://{source}").read_bytes() == b"weights"
    with pytest.raises(CheckpointError, match="no route"):
        find_weights(f"file://{tmp_path}/another.bin")


def test_weights_that_were_read_are_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure also reports when an object was read last."""
    source = tmp_path / "net.bin"
    source.write_bytes(b"weights")
    info = LocalFileSystem.info
    version, reads = "1", count()

    def info_of_azure(self: LocalFileSystem, path: str) -> dict[str, object]:
        return {**info(self, path), "etag": version, "last_accessed_on": next(reads)}

    monkeypatch.setattr(LocalFileSystem, "info", info_of_azure)
    first = find_weights(f"file://{source}")
    inode = first.stat().st_ino
    assert find_weights(f"file://{source}") == first
    assert first.stat().st_ino == inode
    version = "2"
    source.write_bytes(b"WEIGHTS")
    assert find_weights(f"file://{source}").read_bytes() == b"WEIGHTS"


def test_error_for_an_unreachable_hub_id_says_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(CheckpointError, match="neither cached nor reachable: give a file or URL"):
        find_weights("SenseTime/deformable-detr")


@pytest.mark.parametrize("url", ["memory://net.pth", "zip://net.pth::file:///a.zip", "a::s3://b/c"])
def test_other_protocols_and_chains_are_refused(url: str) -> None:
    with pytest.raises(CheckpointError, match=r":// is none of file://.*copy the file"):
        find_weights(url)


@pytest.mark.parametrize(
    "url",
    [
        "hf://datasets/a/b?token=5ecret12",
        "s3://key:5ecret12@bucket/net.pth",
        "https://[bad/net.pth?token=5ecret12",
    ],
)
def test_errors_of_urls_hold_no_secrets(url: str) -> None:
    with pytest.raises(CheckpointError, match="weights cannot be fetched from") as caught:
        find_weights(url)
    assert "5ecret12" not in str(caught.value)


def test_colons_are_a_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a::b.pth").write_bytes(b"content")
    assert find_weights(f"FILE://{tmp_path}/a::b.pth").read_bytes() == b"content"


def test_weights_come_from_where_objects_come_from() -> None:
    assert set(PROTOCOLS) == set(OBJECT_PROTOCOLS)


def test_a_hub_without_an_address_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name ends in .invalid, which no server of names resolves (RFC 2606)."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    began = time.monotonic()
    with pytest.raises(CheckpointUnavailable, match="shapes-tiny, whose weights need no"):
        find_weights("SenseTime/deformable-detr")
    assert time.monotonic() - began < 15  # each file took half a minute


def test_a_proxy_resolves_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    assert not is_resolvable("https://hub.invalid")
    assert is_resolvable("https://127.0.0.1:8000")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:3128")
    assert is_resolvable("https://hub.invalid")
    monkeypatch.setenv("no_proxy", "hub.invalid")
    assert not is_resolvable("https://hub.invalid")


def test_last_copy_is_used_while_the_web_server_is_down(tmp_path: Path) -> None:
    (tmp_path / "net.bin").write_bytes(b"weights")
    with served_files(tmp_path) as address:
        url = f"{address}/net.bin"
        assert find_weights(url).read_bytes() == b"weights"
        with pytest.raises(CheckpointError, match="cannot be fetched"):
            find_weights(f"{address}/other.bin")
    assert find_weights(url).read_bytes() == b"weights"
    with pytest.raises(CheckpointUnavailable, match="Cannot connect to host"):
        find_weights(f"{address}/other.bin")
