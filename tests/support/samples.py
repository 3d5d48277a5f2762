"""Images and archives for tests of the pipeline's first stages."""

import io
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.resize import ResizeRule
from pipeline.plan.plan import plan_shards
from pipeline.schema import ENCODED, NOTHING_DONE, PREPARED, Done, Shard
from pipeline.stages.prepare import Preparer
from pipeline.stages.read import read_shard

RULE = ResizeRule(shorter=64, longest=128)


def jpeg(seed: int = 0, **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((120, 80)).save(file, "JPEG", **options)
    return file.getvalue()


def write_jpegs(folder: Path, letters: str) -> Path:
    """Write a JPEG for each letter, `a.jpg` and so on, into a folder. All have other pixels."""
    folder.mkdir(exist_ok=True)
    for letter in letters:
        (folder / f"{letter}.jpg").write_bytes(jpeg(ord(letter)))
    return folder


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def encoded(shard: Shard, done: Done = NOTHING_DONE) -> list[dict[str, Any]]:
    """Read a shard; return its rows (ENCODED)."""
    tables = list(read_shard(shard, done))
    assert all(table.schema == ENCODED for table in tables)
    return [row for table in tables for row in table.to_pylist()]


@cache
def preparer() -> Preparer:
    """Return the one preparer of all tests, because its process takes seconds to start."""
    return Preparer(RULE)


def prepared(source: Path, **options: Any) -> list[dict[str, Any]]:
    """Plan, read and prepare all images of `source`; return their rows (PREPARED)."""
    rows = []
    for shard in plan_shards(str(source), **options).shards:
        for table in read_shard(shard):
            for block in preparer()(table):
                assert block.schema == PREPARED
                rows += block.to_pylist()
    return rows
