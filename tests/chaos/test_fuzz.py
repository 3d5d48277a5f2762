"""Files changed at random: each is a row, a labelled row or one clear error, in bounded time.

DETR_BATCH_FUZZ_CASES is how many of each kind (`make chaos`: thousands). A failure prints the
example, shrunk, and the line that repeats it.
"""

import io
import os
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.checkpoint import read_weights, save_weights
from model.zoo import create_model
from pipeline import schema
from pipeline.formats.hidden import is_hidden
from pipeline.formats.image_names import is_image
from pipeline.plan.plan import plan_shards
from pipeline.schema import ENCODED
from pipeline.stages.read import read_shard
from tests.support.samples import jpeg, preparer

CASES = int(os.environ.get("DETR_BATCH_FUZZ_CASES", "40"))
STATUSES = {
    value for name, value in vars(schema).items() if name.isupper() and isinstance(value, str)
}
fuzzed = settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    print_blob=True,
)

Edit = tuple[str, float, float, int]  # what, where, how far (as shares of the file), and a byte
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "drop", "repeat", "splice", "zero"]),
        st.floats(0, 1),
        st.floats(0, 0.3),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: list[Edit], other: bytes) -> bytes:
    """`content` with bytes flipped, cut off, left out, repeated, zeroed, or from `other`."""
    for what, where, far, byte in edits:
        start = int(where * len(content))
        stop = start + 1 + int(far * len(content))
        before, middle, behind = content[:start], content[start:stop], content[stop:]
        middle = {
            "flip": bytes(b ^ (byte or 1) for b in middle[:1]) + middle[1:],
            "cut": b"",
            "drop": b"",
            "repeat": middle + middle,
            "splice": other[start:stop],
            "zero": bytes(len(middle)),
        }[what]
        content = before + middle + (b"" if what == "cut" else behind)
    return content


@cache
def encoded(kind: str, seed: int = 0) -> bytes:
    """A picture, an archive or weights, as they should be."""
    if kind == "tar":
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for index in range(4):
                entry = tarfile.TarInfo(f"{index}.jpg")
                entry.size = len(jpeg(index + seed))
                archive.addfile(entry, io.BytesIO(jpeg(index + seed)))
        return file.getvalue()
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        table = pa.table({"id": list("abcd"), "image": [jpeg(i + seed) for i in range(4)]})
        pq.write_table(table, sink, row_group_size=2, compression="snappy")
        return bytes(sink.getvalue())
    pixels = np.random.default_rng(seed).integers(0, 255, (10, 15, 3), np.uint8)
    file = io.BytesIO()
    picture = Image.fromarray(pixels).resize((150, 100))
    if kind == "GIF":
        picture = picture.convert("P")
    picture.save(file, kind, **({"exif": Image.Exif()} if kind != "GIF" else {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
@given(edits=EDITS)
@fuzzed
def test_changed_pictures_are_rows_and_their_neighbours_stay(kind: str, edits: list[Edit]) -> None:
    content = edited(encoded(kind), edits, encoded(kind, 1))
    contents = [jpeg(1), content or b"x", jpeg(2)]
    given_rows = [
        {"image_id": str(i), "status": "ok", "encoded": c} for i, c in enumerate(contents)
    ]
    table = pa.Table.from_pylist(given_rows, schema=ENCODED)
    rows = [row for block in preparer()(table) for row in block.to_pylist()]
    assert [row["image_id"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["status"] == rows[2]["status"] == "ok"
    assert rows[1]["status"] in STATUSES
    assert rows[1]["status"] not in (schema.WORKER_CRASH, schema.TIMED_OUT)
    assert (rows[1]["pixels"] is not None) == (rows[1]["status"] == "ok")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@given(edits=EDITS)
@fuzzed
def test_changed_archives_are_rows(kind: str, tmp_path: Path, edits: list[Edit]) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(edited(encoded(kind), edits, encoded(kind, 9)) or b"x")
    rows = read(path)
    ids = [row["image_id"] for row in rows]
    assert rows and len(set(ids)) == len(ids)
    assert [row["index_in_shard"] for row in rows] == list(range(len(rows)))
    assert [row["shard_size"] for row in rows] == [None] * (len(rows) - 1) + [len(rows)]
    assert {row["status"] for row in rows} <= STATUSES - {schema.WORKER_CRASH, schema.TIMED_OUT}


def read(path: Path) -> list[dict[str, Any]]:
    (shard,) = plan_shards(str(path)).shards
    return [row for table in read_shard(shard) for row in table.to_pylist()]


NAMES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
    st.sampled_from(
        ["../../up.jpg", "/root.png", "a/b.c.jpg", "\x1b[31m.jpg", "'; --.png", "..jpg"]
    ),
)


@given(names=st.lists(NAMES.map(lambda n: n if is_image(n) else f"{n}.jpg"), max_size=6))
@fuzzed
def test_any_names_in_a_tar_are_one_row_each(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for index, name in enumerate(names):
            entry = tarfile.TarInfo(
                name.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
            )
            entry.size = len(jpeg(index))
            archive.addfile(entry, io.BytesIO(jpeg(index)))
    with tarfile.open(path) as archive:
        there = [
            entry
            for entry in archive
            if entry.isfile() and is_image(entry.name) and not is_hidden(entry.name)
        ]
    rows = read(path)
    if not there:
        assert [row["status"] for row in rows] == ["empty_shard"]
        return
    assert len(rows) == len(there) == len({row["image_id"] for row in rows})
    assert all(row["status"] == "ok" for row in rows)


@cache
def weights(folder: Path) -> bytes:
    path = folder / "good.safetensors"
    save_weights(create_model("shapes-tiny", "random", training=True), path, {"labels": "[]"})
    return path.read_bytes()


@given(edits=EDITS)
@fuzzed
def test_changed_weights_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, edits: list[Edit]
) -> None:
    good = weights(tmp_path_factory.getbasetemp())
    header = good[: 8 + int.from_bytes(good[:8], "little")]
    changed = edited(header, edits, good[::-1])
    path = tmp_path / "changed.safetensors"
    path.write_bytes(changed + good[len(header) : len(header) + 20_000])
    try:
        read_weights(path)
    except ValueError as error:
        assert "\n" not in str(error)


def test_edits_do_what_they_say() -> None:
    content = bytes(range(100))
    check: list[tuple[str, Callable[[bytes], bool]]] = [
        ("flip", lambda found: len(found) == 100 and found[50] == 50 ^ 7),
        ("cut", lambda found: found == content[:50]),
        ("drop", lambda found: found == content[:50] + content[61:]),
        ("repeat", lambda found: len(found) == 111),
        ("splice", lambda found: found[50:61] == b"y" * 11 and len(found) == 100),
        ("zero", lambda found: found[50:61] == bytes(11)),
    ]
    for what, right in check:
        assert right(edited(content, [(what, 0.5, 0.1, 7)], b"y" * 100)), what
