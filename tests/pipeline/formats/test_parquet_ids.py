"""Ids of images in Parquet files: columns of many types, and what is in no column."""

import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.parquet_files import error_of, rows_of
from tests.support.samples import jpeg

PHOTO = jpeg(1)


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "#2"]),
        (pa.array(["a", None, "b"], pa.string_view()), ["a", "#1", "b"]),
        (pa.array(["a", "", "b"], pa.large_string()), ["a", "#1", "b"]),
        (pa.array([b"a", b"\xe9\n", "ü".encode()]), ["a", "\\xe9\n", "ü"]),
        (pa.array([3, None, -1], pa.int16()), ["3", "#1", "-1"]),
        (pa.array([1, 2**64 - 1, 0], pa.uint64()), ["1", str(2**64 - 1), "0"]),
        (
            pa.array([uuid.UUID(int=n).bytes for n in range(3)], pa.uuid()),
            [str(uuid.UUID(int=n)) for n in range(3)],
        ),
        (pa.array([b"ab", None, b"cd"], pa.binary(2)), ["ab", "#1", "cd"]),
        (pa.array([1, 2, 1], pa.int64()).dictionary_encode(), ["1", "2", "#2"]),
        (pa.array([0.5, 1.5, 2.5]), ["#0", "#1", "#2"]),
        (pa.nulls(3), ["#0", "#1", "#2"]),
        (pa.array([1, 2, 3], pa.timestamp("us")), ["#0", "#1", "#2"]),
        (pa.array([["a"], ["b"], ["c"]]), ["#0", "#1", "#2"]),
    ],
)
def test_ids_of_many_types_name_images(ids: pa.Array, names: list[str], tmp_path: Path) -> None:
    table = pa.table({"id": ids, "image": [PHOTO] * 3})
    assert [name for name, _, _ in rows_of(table, tmp_path)] == names


def test_text_that_is_not_utf8_names_an_image(tmp_path: Path) -> None:
    """Writers in C++ do not check their strings."""
    ids = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xe9t\xe9", b"b"]).buffers())
    table = pa.table({"id": ids, "image": [PHOTO] * 2})
    assert [name for name, _, _ in rows_of(table, tmp_path)] == ["\\xe9t\\xe9", "b"]


def test_the_id_column_can_be_named(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "name": ["x", "y"], "image": [PHOTO] * 2, "f": [0.5, 1.5]})
    rows = rows_of(table, tmp_path, {"id_column": "name"})
    assert [name for name, _, _ in rows] == ["x", "y"]
    text = error_of(table, tmp_path, id_column="nam")
    assert "no column nam (--id-column): the columns are id, name, image, f" in text
    assert "f (--id-column) holds double" in error_of(table, tmp_path, id_column="f")
