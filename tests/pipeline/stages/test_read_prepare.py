"""Every file and every member becomes exactly one row, whatever is in it."""

import os
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.plan.plan import plan_shards
from pipeline.schema import Done
from pipeline.stages.prepare import Preparer
from pipeline.stages.read import read_shard
from tests.support.samples import RULE, encoded, jpeg, prepared, write_tar


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
        (shard,) = plan_shards(str(tmp_path / "cut.tar")).shards
        rows = encoded(shard)
        good = [row for row in rows if row["status"] == "ok"]
        assert [row["encoded"] for row in good] == list(members.values())[: len(good)]
        assert rows[-1]["shard_size"] == len(rows)
        if len(good) < len(members):
            assert rows[-1]["status"] == "corrupt_shard"


def test_ids_are_unique_within_a_tar(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/1.png", "b/1.jpg", "b/1.seg.jpg", "./b/1.jpg", "note.txt"]
    source = write_tar(tmp_path / "t.tar", {name: jpeg() for name in names})
    (shard,) = plan_shards(str(source)).shards
    ids = [row["image_id"].split("#")[1] for row in encoded(shard)]
    assert ids == ["a/1", "a/1.png", "b/1", "b/1.seg.jpg", "./b/1.jpg"]


def test_leaving_out_what_is_done_keeps_positions(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "t.tar", {f"{i}.jpg": jpeg(i) for i in range(7)})
    (shard,) = plan_shards(str(source)).shards
    everything = [steady(row) for row in encoded(shard)]
    for done in (Done((0, 3)), Done((6,), ended=True), Done(tuple(range(7)), ended=True)):
        rest = [steady(row) for row in encoded(shard, done)]
        assert rest == [row for row in everything if row["index_in_shard"] not in done.positions]
    # Staged when it was not yet known to be the last.
    assert [row["index_in_shard"] for row in encoded(shard, Done((0, 6)))] == [1, 2, 3, 4, 5, 6]


def steady(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "read_seconds"}


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("left", [0, 2])
def test_shard_that_lost_images_since_a_kill_still_adds_up(
    left: int, ended: bool, tmp_path: Path
) -> None:
    source = write_tar(tmp_path / "t.tar", {f"{i}.jpg": jpeg(i) for i in range(7)})
    (shard,) = plan_shards(str(source)).shards
    done = Done((0, 4, 6), ended)
    write_tar(source, {f"{i}.jpg": jpeg(i) for i in range(left)})
    if not left:
        source.unlink()
    rows = encoded(shard, done)
    positions = {row["index_in_shard"] for row in rows} | set(done.positions)
    sizes = {row["shard_size"] for row in rows} - {None} | ({7} if ended else set())
    assert positions == set(range(len(positions)))
    assert sizes == {len(positions)}
    assert len({row["image_id"] for row in rows}) == len(rows)


def test_names_with_signs_of_patterns_and_of_no_encoding(tmp_path: Path) -> None:
    folder = tmp_path / "Photos [2019] *"
    folder.mkdir()
    for name in ("a[1].jpg", "b?.jpg", "c*.jpg", "a1.jpg"):
        (folder / name).write_bytes(jpeg())
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg())
    write_tar(tmp_path / "t.tar", {os.fsdecode(b"na\xefve.jpg"): jpeg()})
    rows = prepared(tmp_path)
    found = {Path(row["image_id"]).name: row["status"] for row in rows}
    assert found == {
        "a[1].jpg": "ok",
        "b?.jpg": "ok",
        "c*.jpg": "ok",
        "a1.jpg": "ok",
        "caf\\xe9.jpg": "unreadable",
        "t.tar#na\\xefve": "ok",
    }


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
    (shard,) = plan_shards(str(tmp_path)).shards
    (encoded,) = read_shard(shard)
    (table,) = Preparer(RULE, max_pixels=400 * 300 - 1)(encoded)
    (row,) = table.to_pylist()
    assert row["status"] == "too_many_pixels"
    assert (row["width"], row["height"]) == (400, 300)
    assert row["pixels"] is None


@pytest.mark.parametrize("says_length", [True, False])
def test_archives_of_a_plain_web_server(says_length: bool, tmp_path: Path) -> None:
    """Which gives no parts of a file, and maybe not its length; larger than what is read ahead."""

    class Plain(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

        def send_header(self, name: str, value: str) -> None:
            if says_length or name != "Content-Length":
                super().send_header(name, value)

    large = jpeg() + os.urandom(6 << 20)
    write_tar(tmp_path / "t.tar", {"a.jpg": large, "b.jpg": jpeg(1)})
    pq.write_table(pa.table({"image": [large, jpeg(1)]}), tmp_path / "p.parquet")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Plain, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "list.txt").write_text(f"{base}/t.tar\n{base}/p.parquet")
    rows = [
        row for shard in plan_shards(str(tmp_path / "list.txt")).shards for row in encoded(shard)
    ]
    server.shutdown()
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert [row["encoded"] for row in rows] == [large, jpeg(1)] * 2
