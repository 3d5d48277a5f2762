"""Parquet files of many makers: the column of images, and the names of its images."""

import base64
import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow.parquet import encryption

from pipeline.formats import parquet, parquet_batches
from pipeline.formats.read import read_rows
from pipeline.plan.plan import plan_shards
from pipeline.stages.read import read_shard
from tests.support.parquet_files import error_of, rows_of, shard_of, write
from tests.support.samples import encoded, jpeg

PHOTO, OTHER, THUMB = jpeg(1), jpeg(2), jpeg(3)
EMBEDDING = np.linspace(-1, 1, 64, dtype=np.float32).tobytes()
NUMPY = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (8, 8, 3)}".ljust(
    300, b" "
)
FLOATS = struct.pack("<16f", *[1.5] * 16)


def images_of(table: pa.Table, folder: Path) -> list[bytes | None]:
    return [content for _, _, content in rows_of(table, folder)]


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"embedding": EMBEDDING, "photo": PHOTO}, PHOTO),
        ({"phash": FLOATS, "jpg": PHOTO}, PHOTO),
        ({"md5": b"m" * 16, "picture_content": PHOTO}, PHOTO),
        ({"thumbnail": THUMB, "image": PHOTO}, PHOTO),
        ({"image_thumb": THUMB, "image_data": PHOTO}, PHOTO),
        ({"mask": THUMB, "depth_image": OTHER, "rgb": PHOTO}, PHOTO),
        ({"image": NUMPY, "encoded": PHOTO}, PHOTO),
        ({"image": NUMPY, "thumbnail": THUMB}, THUMB),
        ({"bytes": FLOATS, "x": PHOTO}, PHOTO),
        ({"raw": FLOATS, "x": FLOATS, "y": PHOTO}, PHOTO),
        ({"imageBytes": PHOTO, "imageHash": b"h" * 32}, PHOTO),
        ({"image_id": b"\xff" * 16, "img": PHOTO}, PHOTO),
        ({"a": THUMB, "b": PHOTO + bytes(1000)}, PHOTO + bytes(1000)),
        ({"text_image": PHOTO, "text": b"hello"}, PHOTO),
        ({"image": NUMPY, "pixels": FLOATS}, NUMPY),  # as before: the decoder says what it is
        ({"image": b"no picture"}, b"no picture"),
        ({"x": PHOTO}, PHOTO),
        ({"thumbnail": PHOTO}, PHOTO),
    ],
)
def test_the_column_of_images_is_found_by_its_name_and_its_bytes(
    columns: dict[str, bytes], wanted: bytes, tmp_path: Path
) -> None:
    table = pa.table({name: [value, value] for name, value in columns.items()})
    assert images_of(table, tmp_path) == [wanted, wanted]


def test_a_few_broken_values_do_not_decide(tmp_path: Path) -> None:
    table = pa.table(
        {"image": [None, b"broken", PHOTO, OTHER], "thumb": [THUMB] * 4, "x": [OTHER] * 4}
    )
    assert images_of(table, tmp_path) == [None, b"broken", PHOTO, OTHER]
    late = pa.table({"scan": [None] * 500 + [PHOTO], "vec": [FLOATS] * 501})
    assert images_of(late, tmp_path)[-1] == PHOTO


@pytest.mark.parametrize("columns", [{"x": [FLOATS]}, {"x": [FLOATS], "y": [b"words"]}])
def test_bytes_that_are_no_images_are_one_row_that_says_what_to_do(
    columns: dict[str, list[bytes]], tmp_path: Path
) -> None:
    text = error_of(pa.table(columns), tmp_path)
    assert all(name in text for name in columns)
    assert "--image-column" in text
    named = rows_of(pa.table(columns), tmp_path, {"image_column": "x"})
    assert named == [("#0", "ok", FLOATS)]


def test_a_file_without_bytes_names_its_columns(tmp_path: Path) -> None:
    text = error_of(pa.table({"url": ["http://x/a.jpg"], "width": [1]}), tmp_path)
    assert "url, width" in text and "--image-column" in text


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.binary(len(PHOTO)),
        pa.dictionary(pa.int32(), pa.binary()),
        pa.dictionary(pa.int8(), pa.large_binary()),
    ],
)
@pytest.mark.parametrize("stored", [True, False])
def test_all_types_of_bytes_are_read(kind: pa.DataType, stored: bool, tmp_path: Path) -> None:
    values = [PHOTO, None, PHOTO]
    plain = pa.array(values, kind.value_type if pa.types.is_dictionary(kind) else kind)
    array = plain.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else plain
    path = write(tmp_path / "p.parquet", pa.table({"image": array}), store_schema=stored)
    rows = list(read_rows(shard_of(path), 0))
    assert [row["encoded"] for row in rows] == values
    assert [row["status"] for row in rows] == ["ok", "missing_bytes", "ok"]


class Jpeg(pa.ExtensionType):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(pa.large_binary(), "tests.jpeg")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Jpeg":
        return cls()


@pytest.mark.parametrize("registered", [True, False])
def test_extension_types_of_bytes_are_read(registered: bool, tmp_path: Path) -> None:
    array = pa.ExtensionArray.from_storage(Jpeg(), pa.array([PHOTO, None], pa.large_binary()))
    if registered:
        pa.register_extension_type(Jpeg())
    try:
        assert images_of(pa.table({"image": array}), tmp_path) == [PHOTO, None]
    finally:
        if registered:
            pa.unregister_extension_type("tests.jpeg")


def hugging_face(images: Sequence[Any], **features: str) -> pa.Table:
    marks = {"info": {"features": {name: {"_type": kind} for name, kind in features.items()}}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({name: pa.array(images, kind) for name in features})
    return table.replace_schema_metadata({"huggingface": json.dumps(marks)})


def test_structs_of_hugging_face_are_read(tmp_path: Path) -> None:
    images = [{"bytes": PHOTO, "path": "a.jpg"}, {"bytes": None, "path": "b/ü.jpg"}, None]
    path = write(tmp_path / "p.parquet", hugging_face(images, image="Image"))
    rows = list(read_rows(shard_of(path), 0))
    assert [row["status"] for row in rows] == ["ok", "missing_bytes", "missing_bytes"]
    assert rows[1]["error"].endswith("the image's path alone, and it is not opened: b/ü.jpg")
    assert "path" not in rows[2]["error"]


def test_a_path_that_is_a_signed_address_is_written_without_its_secret(tmp_path: Path) -> None:
    images = [{"bytes": None, "path": "https://h/a.jpg?token=s3cr3t"}]
    path = write(tmp_path / "p.parquet", hugging_face(images, image="Image"))
    (row,) = read_rows(shard_of(path), 0)
    assert "https://h/a.jpg" in row["error"] and "s3cr3t" not in row["error"]


def test_structs_with_paths_alone_have_rows(tmp_path: Path) -> None:
    """Arrow infers the type null for `bytes`."""
    table = pa.table({"image": [{"bytes": None, "path": "a.jpg"}]})
    assert rows_of(table, tmp_path) == [("#0", "missing_bytes", None)]


def test_the_features_of_hugging_face_name_the_images(tmp_path: Path) -> None:
    images = [{"bytes": PHOTO, "path": None}]
    table = hugging_face(images, image_of_sound="Audio", x="Image")
    (row,) = read_rows(shard_of(write(tmp_path / "p.parquet", table)), 0)
    assert row["encoded"] == PHOTO
    sound = hugging_face(images, image="Audio")
    assert "no column of images" in error_of(sound, tmp_path)


@pytest.mark.parametrize("marks", ["{", "[" * 50_000, '{"info": 3}', '{"info": {"features": [3]}}'])
def test_damaged_marks_of_hugging_face_are_no_error(marks: str, tmp_path: Path) -> None:
    table = pa.table({"image": [PHOTO]}).replace_schema_metadata({"huggingface": marks})
    assert images_of(table, tmp_path) == [PHOTO]


def test_nested_structs_are_read(tmp_path: Path) -> None:
    sample = [{"meta": {"id": 7}, "image": {"bytes": PHOTO, "path": "x"}}, {"image": None}, None]
    assert images_of(pa.table({"sample": sample}), tmp_path) == [PHOTO, None, None]
    named = {"image_column": "sample.image", "id_column": "sample.meta.id"}
    rows = rows_of(pa.table({"sample": sample}), tmp_path, named)
    assert [name for name, _, _ in rows] == ["7", "#1", "#2"]
    parts = pa.table({"features": [{"image": PHOTO, "image_hash": b"h" * 32}], "label": [THUMB]})
    assert images_of(parts, tmp_path) == [PHOTO]
    other = pa.table({"jpg": [THUMB] * 3, "sample": sample})
    named = {"image_column": "sample.image.bytes"}
    assert [content for _, _, content in rows_of(other, tmp_path, named)] == [PHOTO, None, None]


@pytest.mark.parametrize("make", [pa.list_, pa.large_list, pa.list_view])
def test_each_element_of_a_list_is_an_image(make: Any, tmp_path: Path) -> None:
    lists = [[PHOTO, None, OTHER], [], None, [THUMB]]
    table = pa.table({"images": pa.array(lists, make(pa.binary())), "id": ["a", "b", "c", None]})
    assert rows_of(table, tmp_path) == [
        ("a-0", "ok", PHOTO),
        ("a-1", "missing_bytes", None),
        ("a-2", "ok", OTHER),
        ("b", "missing_bytes", None),
        ("c", "missing_bytes", None),
        ("#3-0", "ok", THUMB),
    ]


def test_lists_of_structs_and_of_lists_are_read(tmp_path: Path) -> None:
    kind = pa.struct([("path", pa.string()), ("bytes", pa.binary())])
    images = [{"bytes": PHOTO, "path": "a"}, {"bytes": None, "path": "b"}, None]
    table = pa.table({"images": pa.array([images, images[1:]], pa.list_(kind))})
    path = write(tmp_path / "p.parquet", table)
    rows = list(read_rows(shard_of(path), 0))
    assert [row["encoded"] for row in rows] == [PHOTO, None, None, None, None]
    assert [row["error"][-9:] for row in rows[1:]] == ["opened: b", "s is null"] * 2
    fixed = pa.array([[PHOTO, OTHER], None, [THUMB, None]], pa.list_(pa.binary(), 2))
    assert images_of(pa.table({"x": fixed}), tmp_path) == [PHOTO, OTHER, None, THUMB, None]
    deep = pa.table({"frames": [[[PHOTO], [OTHER, THUMB]], [[]]]})
    rows_deep = [(name, content) for name, _, content in rows_of(deep, tmp_path)]
    assert rows_deep == [("#0-0", PHOTO), ("#0-1", OTHER), ("#0-2", THUMB), ("#1", None)]


def test_the_image_column_can_be_named(tmp_path: Path) -> None:
    table = pa.table({"image": [PHOTO], "hash": [b"h" * 32], "url": ["u"], "m": [[("k", b"v")]]})
    table = table.set_column(3, "m", pa.array([[("k", b"v")]], pa.map_(pa.string(), pa.binary())))
    rows = rows_of(table, tmp_path, {"image_column": "hash"})
    assert rows == [("#0", "ok", b"h" * 32)]
    text = error_of(table, tmp_path, image_column="jpg")
    assert "no column jpg (--image-column): the columns are image, hash, url, m" in text
    assert "url (--image-column) holds string" in error_of(table, tmp_path, image_column="url")
    assert "holds map<string, binary" in error_of(table, tmp_path, image_column="m")


def test_names_with_dots_and_names_given_twice(tmp_path: Path) -> None:
    table = pa.table([[PHOTO], [OTHER], [1]], ["a.jpg", "a.png", "a"])
    assert images_of(table, tmp_path) == [PHOTO]
    rows = rows_of(table, tmp_path, {"image_column": "a.png"})
    assert [content for _, _, content in rows] == [OTHER]
    twice = pa.table([[FLOATS], [PHOTO], ["x"]], ["image", "image", "id"])
    assert rows_of(twice, tmp_path) == [("x", "ok", PHOTO)]


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "lz4", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_all_compressions_and_pages_are_read(
    compression: str, version: Any, tmp_path: Path
) -> None:
    images = [{"bytes": value, "path": "x"} for value in (PHOTO, None, b"", OTHER)]
    table = pa.table({"image": images, "__index_level_0__": list("abcd")})
    path = write(
        tmp_path / "p.parquet",
        table,
        compression=compression,
        data_page_version=version,
        row_group_size=3,
    )
    statuses = [row["status"] for row in read_rows(shard_of(path), 0)]
    assert statuses == ["ok", "missing_bytes", "empty_file", "ok"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.list_(pa.binary())])
def test_a_file_without_rows_is_one_row(kind: pa.DataType, tmp_path: Path) -> None:
    schema = pa.schema([("image", kind), ("b", pa.binary())])
    (row,) = encoded(shard_of(write(tmp_path / "p.parquet", schema.empty_table())))
    assert (row["status"], row["shard_size"]) == ("empty_shard", 1)
    with pq.ParquetWriter(tmp_path / "q.parquet", schema):
        pass
    (row,) = encoded(shard_of(tmp_path / "q.parquet"))
    assert row["status"] == "empty_shard"


def test_values_of_a_dictionary_count_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value of 20 kB stands in 2,000 rows of a file of 20 kB."""
    monkeypatch.setattr(parquet_batches, "MAX_ENCODED_BYTES", 60_000)
    table = pa.table({"image": [{"bytes": PHOTO + bytes(20_000)}] * 2000})
    path = write(tmp_path / "p.parquet", table, dictionary_pagesize_limit=1 << 30)
    column = pq.read_metadata(path).row_group(0).column(0)
    assert column.total_uncompressed_size < 30_000
    assert parquet_batches._rows_at_once(column) == 2
    assert len(list(read_rows(shard_of(path), 0))) == 2000


class Keys(encryption.KmsClient):  # type: ignore[misc]
    """Keys wrapped by nothing."""

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plain_footer", [True, False])
def test_an_encrypted_file_is_one_row(plain_footer: bool, tmp_path: Path) -> None:
    """Arrow ends the process that asks for the size of an encrypted column."""
    factory = encryption.CryptoFactory(lambda _: Keys())
    properties = factory.file_encryption_properties(
        encryption.KmsConnectionConfig(),
        encryption.EncryptionConfiguration(
            footer_key="a", column_keys={"b": ["image"]}, plaintext_footer=plain_footer
        ),
    )
    table = pa.table({"image": [PHOTO], "id": ["a"]})
    path = tmp_path / "p.parquet"
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    (row,) = encoded(shard_of(path))
    assert row["status"] == "corrupt_shard"
    assert "encrypted" in row["error"]
    assert len(plan_shards(str(tmp_path), limit=1).shards) == 1  # by the driver


def test_each_column_is_read_with_its_own_size_of_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are read by 16 rows, and images row by row: one reader would read both by 16."""
    monkeypatch.setattr(parquet_batches, "MAX_ENCODED_BYTES", 6000)
    sizes: list[int] = []
    flatten = parquet._flatten

    def noting(values: pa.Array) -> Any:
        sizes.append(len(values))
        return flatten(values)

    monkeypatch.setattr(parquet, "_flatten", noting)
    images = [{"bytes": PHOTO, "path": "x"}] * 20
    table = pa.table({"image": images, "id": list(range(20))})
    path = write(tmp_path / "p.parquet", table, use_dictionary=False)
    assert len(list(read_rows(shard_of(path), 0))) == 20
    assert sorted(sizes) == [1] * 20 + [4, 4, 16, 16]


@pytest.mark.slow
@pytest.mark.parametrize("size", [20_000_000, 2_000_000])
def test_a_row_group_of_structs_beyond_2_gib_is_read(size: int, tmp_path: Path) -> None:
    rows = 2_400_000_000 // size
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    one = pa.array([{"bytes": PHOTO.ljust(size, b"\0"), "path": "x"}], kind)
    table = pa.table({"image": pa.chunked_array([one] * rows)})
    write(
        tmp_path / "p.parquet",
        table,
        use_dictionary=False,
        compression="zstd",
        row_group_size=rows,
    )
    with pytest.raises(pa.ArrowNotImplementedError):
        pq.read_table(tmp_path / "p.parquet")
    tables = read_shard(shard_of(tmp_path / "p.parquet"))
    assert sum(pc.sum(pc.equal(found["status"], "ok")).as_py() for found in tables) == rows


def test_pages_that_differ_from_their_checksums_are_damage(tmp_path: Path) -> None:
    """Pixels of BMP may be any bytes, so that no decoder would notice."""
    file = io.BytesIO()
    Image.new("RGB", (90, 70), "red").save(file, "BMP")
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": [file.getvalue()]}), path, compression="none", write_page_checksum=True
    )
    assert [row["status"] for row in read_rows(shard_of(path), 0)] == ["ok"]
    data = bytearray(path.read_bytes())
    data[9000] ^= 1
    path.write_bytes(data)
    (row,) = read_rows(shard_of(path), 0)
    assert row["status"] == "corrupt_shard" and "CRC" in row["error"]
