"""Every image becomes upright RGB pixels, or one failed row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.plan.plan import plan_shards
from pipeline.stages.prepare import Preparer
from pipeline.stages.read import read_shard
from tests.support.samples import RULE, jpeg, prepared


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
