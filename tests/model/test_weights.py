"""Weights by URL and hub id: fetched once, again when they change, and a clear word when not."""

import hashlib
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import constants

from model.errors import CheckpointError
from model.weights import cache_folder, find_weights
from pipeline.storage.files import open_location


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
    written = first.stat().st_mtime_ns
    assert find_weights(url) == first
    assert first.stat().st_mtime_ns == written
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


def test_missing_object_is_one_line(bucket: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be fetched from s3://") as caught:
        find_weights(f"{bucket}/nothing.pth")
    assert "\n" not in str(caught.value)


def test_store_that_is_down_leaves_the_last_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "net.bin"
    source.write_bytes(b"weights")
    assert find_weights(f"file://{source}").read_bytes() == b"weights"

    def down(self: LocalFileSystem, path: str) -> str:
        raise ConnectionError("no route to the store")

    monkeypatch.setattr(LocalFileSystem, "ukey", down)
    assert find_weights(f"file://{source}").read_bytes() == b"weights"
    with pytest.raises(CheckpointError, match="no route"):
        find_weights(f"file://{tmp_path}/another.bin")


def test_hub_id_out_of_reach_says_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(CheckpointError, match="neither cached nor reachable: pass --weights"):
        find_weights("SenseTime/deformable-detr")
