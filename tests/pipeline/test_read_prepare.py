"""Every file and every member becomes exactly one row, whatever is in it."""

import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model.resize import ResizeRule
from pipeline.plan import from_table, plan, to_table
from pipeline.prepare import prepare_blocks
from pipeline.read import read_shard
from pipeline.schema import ENCODED, PREPARED, Shard
from pipeline.storage import InputError

RULE = ResizeRule(shorter=64, longest=128)


def jpeg(seed: int = 0, **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((120, 80)).save(file, "JPEG", **options)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def encoded(shard: Shard, done: frozenset[int] = frozenset()) -> list[dict[str, Any]]:
    tables = list(read_shard(shard, done))
    assert all(table.schema == ENCODED for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def prepared(source: Path, **options: Any) -> list[dict[str, Any]]:
    rows = []
    for shard in plan(str(source), **options).shards:
        for table in read_shard(shard):
            for block in prepare_blocks(table, RULE):
                assert block.schema == PREPARED
                rows += block.to_pylist()
    return rows


def test_every_nasty_file_ends_as_one_row(testdata: Path) -> None:
    rows = prepared(testdata / "nasty", format="images")
    names = [p for p in (testdata / "nasty").rglob("*") if p.is_file() and p.name[0] not in "_."]
    assert Counter(row["image_id"] for row in rows) == Counter(f"file://{p}" for p in names)
    for row in rows:
        assert (row["status"] == "ok") == (row["pixels"] is not None) == (row["error"] is None)


def test_shards_by_other_tools(testdata: Path) -> None:
    rows = prepared(testdata / "shards")
    ids = Counter(row["image_id"] for row in rows)
    assert max(ids.values()) == 1
    broken = [row for row in rows if row["status"] == "corrupt_shard"]
    assert [Path(row["uri"]).name for row in broken] == [
        "bad__datapage_v1-corrupt-checksum.parquet"
    ]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_truncated_tar_keeps_what_came_before(tmp_path: Path, mode: str) -> None:
    members = {f"{i:03}.jpg": jpeg(i) for i in range(6)}
    whole = write_tar(tmp_path / "whole.tar", members, mode).read_bytes()
    for cut in range(700, len(whole) - 11_000 if mode == "w" else len(whole) - 20, 1777):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        (shard,) = plan(str(tmp_path / "cut.tar")).shards
        rows = encoded(shard)
        good = [row for row in rows if row["status"] == "ok"]
        assert [row["encoded"] for row in good] == list(members.values())[: len(good)]
        assert rows[-1]["shard_size"] == len(rows)
        if len(good) < len(members):
            assert rows[-1]["status"] == "corrupt_shard"


def test_ids_are_unique_within_a_tar(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/1.png", "b/1.jpg", "b/1.seg.jpg", "./b/1.jpg", "note.txt"]
    source = write_tar(tmp_path / "t.tar", {name: jpeg() for name in names})
    (shard,) = plan(str(source)).shards
    ids = [row["image_id"].split("#")[1] for row in encoded(shard)]
    assert ids == ["a/1", "a/1.png", "b/1", "b/1.seg.jpg", "./b/1.jpg"]


def test_leaving_out_what_is_done_keeps_positions(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "t.tar", {f"{i}.jpg": jpeg(i) for i in range(7)})
    (shard,) = plan(str(source)).shards
    everything = encoded(shard)
    for done in (frozenset({0, 3}), frozenset({6}), frozenset(range(7))):
        rest = encoded(shard, done)
        assert rest == [row for row in everything if row["index_in_shard"] not in done]


def test_parquet_plain_nested_and_null(tmp_path: Path) -> None:
    nested = [{"bytes": jpeg(), "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None]
    pq.write_table(pa.table({"image": nested, "label": [1, 2, 3]}), tmp_path / "hf.parquet")
    rows = prepared(tmp_path)
    assert [row["status"] for row in rows] == ["ok", "missing_bytes", "missing_bytes"]
    assert rows[0]["image_id"] == f"file://{tmp_path}/hf.parquet#0"
    pq.write_table(pa.table({"id": ["x", "x"], "jpg": [jpeg(), b""]}), tmp_path / "hf.parquet")
    rows = prepared(tmp_path)
    assert [row["image_id"] for row in rows] == ["x", f"file://{tmp_path}/hf.parquet#1"]
    assert [row["status"] for row in rows] == ["ok", "empty_file"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "turned.jpg").write_bytes(jpeg(exif=exif))
    (row,) = prepared(tmp_path)
    assert row["orientation"] == orientation
    turned = orientation > 4
    assert (row["width"], row["height"]) == ((80, 120) if turned else (120, 80))
    assert (row["columns"], row["rows"]) == ((64, 96) if turned else (96, 64))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 100, dtype=np.uint16)[None].repeat(50, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    (row,) = prepared(tmp_path)
    pixels = np.frombuffer(row["pixels"], np.uint8).reshape(row["rows"], row["columns"], 3)
    assert pixels[0, 0, 0] < 5
    assert pixels[0, -1, 0] > 250
    assert 110 < pixels[0, row["columns"] // 2, 0] < 145


def pixels_of(row: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(row["pixels"], np.uint8).reshape(row["rows"], row["columns"], 3)


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("L", 120, "png", (120, 120, 120)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (90, 10), "png", (90, 90, 90)),
        ("RGBA", (200, 100, 50, 0), "png", (200, 100, 50)),
        ("RGBA", (200, 100, 50, 128), "webp", (200, 100, 50)),
        ("CMYK", (0, 255, 255, 0), "jpg", (255, 0, 0)),
        ("YCbCr", (76, 85, 255), "jpg", (254, 0, 0)),
        ("F", 0.5, "tiff", (127, 127, 127)),
    ],
)
def test_every_mode_becomes_rgb(
    mode: str, colour: Any, suffix: str, expected: tuple[int, ...], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.new(mode, (100, 80), colour).save(tmp_path / f"picture.{suffix}", **options)
    (row,) = prepared(tmp_path)
    assert row["status"] == "ok"
    assert np.abs(pixels_of(row).mean((0, 1)) - expected).max() <= 3


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    picture = Image.new("P", (100, 80), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])
    picture.save(tmp_path / "palette.png", transparency=0)
    (row,) = prepared(tmp_path)
    assert pixels_of(row)[40, 50].tolist() == [10, 200, 30]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (100, 80), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    (row,) = prepared(tmp_path)
    assert pixels_of(row)[40, 50].tolist() == [255, 0, 0]


def test_pixel_limit_is_read_from_the_header(tmp_path: Path) -> None:
    Image.new("L", (400, 300)).save(tmp_path / "large.png")
    (shard,) = plan(str(tmp_path)).shards
    (encoded,) = read_shard(shard)
    (table,) = prepare_blocks(encoded, RULE, max_pixels=400 * 300 - 1)
    (row,) = table.to_pylist()
    assert row["status"] == "too_many_pixels"
    assert (row["width"], row["height"]) == (400, 300)
    assert row["pixels"] is None


def test_plan_leaves_out_what_is_known_and_survives_storage(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.png", "sub/note.txt", "_hidden/c.jpg", ".d.jpg", "misnamed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg())
    whole = plan(str(tmp_path))
    members = whole.shards[0].members
    names = [member.uri.removeprefix(f"file://{tmp_path}/") for member in members]
    assert names == ["a.jpg", "misnamed", "sub/b.png"]
    assert whole.ignored == 1
    assert from_table(to_table(whole.shards)) == whole.shards
    rest = plan(str(tmp_path), known={(members[0].uri, members[0].etag)})
    assert len(rest.shards[0].members) == 2


def test_missing_and_empty_input_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        plan(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nothing to label"):
        plan(str(tmp_path))


def test_list_of_urls(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "list.txt").write_text(f"# photos\na.jpg\n\n{tmp_path}/gone.jpg\na.jpg\n")
    rows = prepared(tmp_path / "list.txt")
    assert [row["status"] for row in rows] == ["ok", "unreadable"]
