"""A link in a tar is an image of its own, and never leads out of the archive."""

import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipeline.formats import tar_links
from tests.pipeline.formats.tar_samples import (
    PACKED,
    A,
    B,
    C,
    Read,
    hard,
    outcomes,
    soft,
    tar_bytes,
)


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return partial(outcomes, tmp_path / "t.tar")


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_links_are_images_of_their_own(pack: Callable[[bytes], bytes], read: Read) -> None:
    content = tar_bytes(
        soft("early.jpg", "data/b.jpg"),
        ("data/a.jpg", A),
        hard("hard.jpg", "data/a.jpg"),
        soft("data/soft.jpg", "a.jpg"),
        ("data/b.jpg", B),
        soft("folder", "data"),
        soft("through.jpg", "folder/b.jpg"),
        soft("chain.jpg", "through.jpg"),
        hard("hard-to-soft.jpg", "early.jpg"),
        hard("hard-to-hard.jpg", "hard.jpg"),
        soft("data/up.jpg", "./../data/.//b.jpg"),
    )
    assert read(pack(content)) == {
        "data/a": A,
        "data/b": B,
        "hard": A,
        "data/soft": A,
        "hard-to-hard": A,
        "early": B,
        "through": B,
        "chain": B,
        "hard-to-soft": B,
        "data/up": B,
    }


def test_links_that_lead_to_no_image_are_failed_rows(read: Read, tmp_path: Path) -> None:
    (tmp_path / "outside.jpg").write_bytes(C)
    content = tar_bytes(
        ("d/a.jpg", A),
        ("d/note.txt", b"text"),
        ("fifo.jpg", tarfile.FIFOTYPE, ""),
        soft("nowhere.jpg", "b.jpg"),
        soft("up.jpg", "../../etc/passwd"),
        soft("beside.jpg", "../outside.jpg"),
        soft("absolute.jpg", f"{tmp_path}/outside.jpg"),
        hard("hard.jpg", f"{tmp_path}/outside.jpg"),
        soft("self.jpg", "self.jpg"),
        soft("round1.jpg", "round2.jpg"),
        soft("round2.jpg", "round1.jpg"),
        soft("folder.jpg", "d"),
        soft("text.jpg", "d/note.txt"),
        soft("pipe.jpg", "fifo.jpg"),
        soft("loop", "loop/x"),
        soft("deep.jpg", "loop/a.jpg"),
    )
    found = read(content)
    assert found.pop("d/a") == A
    assert set(found) == {
        "nowhere", "up", "beside", "absolute", "hard", "self", "round1", "round2", "folder",
        "text", "pipe", "loop", "deep",
    }  # fmt: skip
    assert all(text.startswith("unreadable: the link cannot be foll") for text in found.values())
    assert "to no file of the archive (b.jpg)" in found["nowhere"]
    assert "out of the archive (../../etc/passwd)" in found["up"]
    for name in ("absolute", "hard", "beside"):
        assert "out of the archive" in found[name]
    for name in ("self", "round1", "round2", "deep", "loop"):
        assert "in circles" in found[name]
    assert "to a folder (d)" in found["folder"]
    assert "to no image (d/note.txt)" in found["text"]


def test_links_to_names_that_occur_again_lead_where_tar_would_put_them(read: Read) -> None:
    content = tar_bytes(
        ("a.jpg", A),
        hard("first.jpg", "a.jpg"),
        ("a.jpg", B),
        hard("second.jpg", "./a.jpg"),
        soft("soft.jpg", "a.jpg"),
        ("a.jpg", C),
        hard("later.jpg", "z.jpg"),
        ("z.jpg", A),
        hard("z.jpg", "z.jpg"),  # GNU tar writes this if a file is named twice
    )
    assert read(content) == {
        "a": A,
        "a.jpg": B,
        "a.jpg~2": C,
        "z": A,
        "first": A,
        "second": B,
        "soft": C,
        "later": A,
        "z.jpg": A,
    }


def test_links_without_an_extension_are_what_they_lead_to(read: Read) -> None:
    content = tar_bytes(
        ("blobs/0a1b", A),
        ("blobs/text", b"text"),
        ("run.sh", b"#!/bin/sh"),
        soft("snapshots/x.jpg", "../blobs/0a1b"),
        soft("key", "blobs/0a1b"),
        soft("words", "blobs/text"),
        soft("run", "run.sh"),
        soft("latest", "blobs"),
        soft("lost", "blobs/9999"),
        soft("library", "/usr/lib/libz.so"),
    )
    found = read(content)
    assert "unreadable" in found.pop("lost")
    assert found == {"blobs/0a1b": A, "snapshots/x": A, "key": A}


def test_links_before_damage_are_followed(read: Read) -> None:
    content = tar_bytes(("a.jpg", A), hard("b.jpg", "a.jpg"))
    content = content[: content.index(b"b.jpg") + 512]
    found = read(content + b"damaged!" * 64 + tar_bytes(("c.jpg", C)))
    assert list(found) == ["a", "b", "broken-after-2"]
    assert found["b"] == A
    assert found["broken-after-2"].startswith("corrupt_shard")


def test_links_beyond_the_limit_are_failed_rows(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_links, "MOST_LINKS", 2)
    content = tar_bytes(("a.jpg", A), *(hard(f"{n}.jpg", "a.jpg") for n in range(4)))
    found = read(content)
    assert list(found) == ["a", "2", "3", "0", "1"]
    assert "more links than are followed" in found["3"]
    monkeypatch.undo()
    monkeypatch.setattr(tar_links, "MOST_MEMBERS", 1)
    found = read(
        tar_bytes(("a.jpg", A), ("b.jpg", B), soft("c.jpg", "a.jpg"), soft("d.jpg", "b.jpg"))
    )
    assert found["c"] == A
    assert "split the archive" in found["d"]
