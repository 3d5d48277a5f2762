"""Every image becomes upright RGB pixels, or one failed row."""

import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from model.resize import ResizeRule
from pipeline.isolation.child import Child
from pipeline.plan.plan import plan_shards
from pipeline.schema import DECODED, ENCODED
from pipeline.stages import prepare
from pipeline.stages.decode import decode_row
from pipeline.stages.prepare import Preparer
from pipeline.stages.read import read_shard
from pipeline.stages.tiling import MAX_PIXELS
from tests.pipeline.isolation.lying_decoder import GOOD, LIES
from tests.support.samples import RULE, jpeg, prepared, preparer, write_tar


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
    Image.new(mode, (100, 80), colour).save(tmp_path / f"image.{suffix}", **options)
    (row,) = prepared(tmp_path)
    assert row["status"] == "ok"
    assert np.abs(pixels_of(row).mean((0, 1)) - expected).max() <= 3


def test_palette_with_a_transparent_colour_becomes_rgb(tmp_path: Path) -> None:
    image = Image.new("P", (100, 80), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "palette.png", transparency=0)
    (row,) = prepared(tmp_path)
    assert pixels_of(row)[40, 50].tolist() == [10, 200, 30]


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_a_decoder_that_lies_costs_the_row_of_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that no image has do not reach the detector, whose batch they would break."""
    decoder = "tests.pipeline.isolation.lying_decoder"
    monkeypatch.setattr(prepare, "DECODE", f"{decoder}:decode_and_lie")
    hostile = Preparer(RULE)
    hostile.child = Child(hostile.child.answers, f"{decoder}:load_decoders")
    lies = list(LIES)[:2]
    contents = [content for lie in lies for content in (jpeg(), lie)]
    given = [{"status": "ok", "encoded": content} for content in contents]
    blocks = hostile(pa.Table.from_pylist(given, schema=ENCODED))
    rows = [row for block in blocks for row in block.to_pylist()]
    assert [row["status"] for row in rows] == ["ok", "worker_crash"] * len(lies)
    assert all("contradict" in row["error"] for row in rows[1::2])
    hostile.child.close()


@pytest.mark.parametrize("lie", LIES.values(), ids=[lie.decode() for lie in LIES])
def test_each_lie_is_noticed(lie: dict[str, Any]) -> None:
    is_plausible = preparer().child.answers.is_plausible
    row = {**dict.fromkeys(DECODED.names), **decode_row(GOOD, RULE, MAX_PIXELS)}
    assert is_plausible(row)
    assert not is_plausible({**row, **lie})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads the memory of its process from /proc")
def test_reading_and_preparing_leave_no_images_in_memory(tmp_path: Path) -> None:
    """100 images of 1 MiB, each of which becomes 3 MiB of pixels."""
    large = jpeg() + bytes(1 << 20)
    tar = write_tar(tmp_path / "t.tar", {f"{number}.jpg": large for number in range(120)})
    (shard,) = plan_shards(str(tar)).shards
    prepare = Preparer(ResizeRule(1000, 2000))
    held: list[int] = []
    for table in read_shard(shard):
        for block in prepare(table):
            assert set(block["status"].to_pylist()) == {"ok"}
        held.append(memory_of_this_process())
    prepare.child.close()
    assert held[-1] - held[len(held) // 6] < 100 << 20


def memory_of_this_process() -> int:
    """Return the bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
