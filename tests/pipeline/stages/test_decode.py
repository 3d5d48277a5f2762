"""Decoded and resized pixels equal those of Pillow, with which the models were trained."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from model.resize import ResizeRule
from pipeline.stages.decode import decode_row
from pipeline.stages.prepare import MAX_PIXELS

FORMATS = [
    {"format": "JPEG", "subsampling": 0},
    {"format": "JPEG", "subsampling": 1},
    {"format": "JPEG", "subsampling": 2, "progressive": True},
    {"format": "PNG"},
    {"format": "WEBP"},
]


def draw_image(mode: str, width: int, height: int) -> Image.Image:
    """Draw noise that is smoothed, so that it resembles a photo."""
    noise = np.random.default_rng(width).integers(0, 255, (height // 4 + 1, width // 4 + 1, 3))
    small = Image.fromarray(noise.astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def prepared_pixels(encoded: bytes, rule: ResizeRule) -> np.ndarray[Any, Any]:
    found = decode_row(encoded, rule, MAX_PIXELS)
    assert found["status"] == "ok", found["error"]
    shape = found["rows"], found["columns"], 3
    return np.frombuffer(found["pixels"], np.uint8).reshape(shape).astype(int)


@pytest.mark.parametrize("orientation", [1, 6, 7])
@pytest.mark.parametrize(
    "save_options", FORMATS, ids=lambda options: "-".join(map(str, options.values()))
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("shorter", [91, 40, 200], ids=["as it is", "smaller", "larger"])
def test_pixels_equal_those_of_pillow(
    mode: str, save_options: dict[str, Any], orientation: int, shorter: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    draw_image(mode, 133, 91).save(buffer, exif=exif, **save_options)
    rule = ResizeRule(shorter, 10_000)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))).convert("RGB")
    rows, columns = rule.target_size(expected.height, expected.width)
    resized = expected.resize((columns, rows), Image.Resampling.BILINEAR)
    found = prepared_pixels(buffer.getvalue(), rule)
    difference = np.abs(found - np.asarray(resized).astype(int))
    assert difference.max() <= (0 if shorter == 91 else 1)
