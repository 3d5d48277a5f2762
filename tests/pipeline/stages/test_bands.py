"""Images that are read in bands have the pixels that Pillow reads, or a row that says why not."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.resize import ResizeRule
from pipeline.stages import bands
from pipeline.stages.bands import VipsBands
from pipeline.stages.decode import decode_row
from pipeline.stages.tiling import Tiling, views
from pipeline.stages.views import cut_views, read_views

pytest.importorskip("pyvips")

RULE = ResizeRule(64, 128)
TILING = Tiling(100, 0.25)
ORIENTATION = 0x0112


def picture(mode: str = "RGB", side: int = 300) -> Image.Image:
    """Smooth noise with some sharp edges."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8)
    image = Image.fromarray(noise).resize((side + 111, side), Image.Resampling.BICUBIC)
    image.paste((255, 0, 0), (50, 60, 90, 200))
    return image.convert(mode)


def encoded(format: str, image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


SAMPLINGS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
}
JPEGS = {
    f"jpeg {mode} {name}": encoded("JPEG", picture(mode), quality=91, **options)
    for mode in ("RGB", "L")
    for name, options in SAMPLINGS.items()
}
TIFFS = {
    f"tiff {mode} {compression}": encoded("TIFF", picture(mode), compression=compression)
    for mode in ("RGB", "L", "RGBA")
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg")
}
TIFFS["tiff big"] = encoded("TIFF", picture(), big_tiff=True, compression="jpeg", quality=90)


@pytest.mark.parametrize("content", [*JPEGS.values(), *TIFFS.values()], ids=[*JPEGS, *TIFFS])
def test_pixels_are_those_of_pillow(content: bytes) -> None:
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    read = VipsBands(content)
    parts = [read.read(top, min(37, 300 - top)) for top in range(0, 300, 37)]
    assert np.array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("size", [(1000, 777), (101, 900), (900, 101), (3000, 40)])
def test_tiles_of_bands_are_those_of_the_whole_image(size: tuple[int, int]) -> None:
    image = picture(side=1000).resize(size)
    pixels = np.array(image)
    found = views(pixels.shape[0], pixels.shape[1], RULE, True, TILING)
    read = read_views(VipsBands(encoded("TIFF", image)), found)
    expected = cut_views(pixels, found)
    whole = found[0].bytes
    assert len(found) > 5 and np.array_equal(read[whole:], expected[whole:])
    difference = read[:whole].astype(int) - expected[:whole]
    assert abs(difference.mean()) < 0.5 and np.abs(difference).mean() < 5


def turned(value: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return encoded("JPEG", picture(), exif=exif.tobytes())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded("PNG", picture()), "of PNG files no bands are read"),
        (encoded("JPEG", picture("CMYK")), "only RGB and grey of 8 bits"),
        (encoded("TIFF", picture("CMYK")), "only RGB and grey of 8 bits"),
        (encoded("TIFF", picture("P")), "only RGB and grey of 8 bits"),
        (encoded("TIFF", Image.fromarray(np.full((300, 400), 9, np.uint16))), "8 bits"),
        (encoded("TIFF", picture(), compression="zstd"), "its compression, number 50000"),
        (turned(3), "is to be turned"),
        (turned(6), "is to be turned"),
        (encoded("TIFF", picture(), tiffinfo={ORIENTATION: 6}), "is to be turned"),
        (encoded("TIFF", picture(), tiffinfo={254: 1}), "preview"),
    ],
)
def test_what_is_not_read_alike_is_refused(content: bytes, reason: str) -> None:
    row = decode_row(content, RULE, 10_000, tiling=TILING)
    assert row["status"] in ("too_many_pixels", "undecodable") and reason in row["error"]
    assert {row["width"], row["height"]} <= {300, 400, 411}


@pytest.mark.parametrize("content", [JPEGS["jpeg RGB 4:2:0"], TIFFS["tiff RGB None"]])
def test_an_image_that_ends_early_fails(content: bytes) -> None:
    row = decode_row(content[: len(content) * 2 // 3], RULE, 10_000, tiling=TILING)
    assert row["status"] in ("truncated", "undecodable") and "pixels" not in row


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "PACKAGE", "pyvips_is_missing")
    row = decode_row(JPEGS["jpeg L 4:4:4"], RULE, 10_000, tiling=TILING)
    assert row["status"] == "too_many_pixels"
    assert "411 x 300 is more than 10000 pixels" in row["error"]
    assert "pip install '.[large]'" in row["error"]


def test_without_tiles_large_images_are_refused() -> None:
    row = decode_row(JPEGS["jpeg RGB 4:2:0"], RULE, 10_000)
    assert (row["status"], row["error"]) == (
        "too_many_pixels",
        "411 x 300 is more than 10000 pixels",
    )
