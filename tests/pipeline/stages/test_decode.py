"""Decoded and resized pixels equal those of Pillow, with which the models were trained."""

import io
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from model.resize import ResizeRule
from pipeline.formats.image_names import has_package
from pipeline.schema import ENCODED, OK, UNDECODABLE
from pipeline.stages.decode import decode_row, header_row
from pipeline.stages.opening import optional_formats
from pipeline.stages.tiling import MAX_PIXELS
from tests.support.parameters import others_slow
from tests.support.samples import preparer

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


@pytest.mark.parametrize(
    ("name", "suffix"), others_slow([("AVIF", ""), ("JXL", ".jxl"), ("HEIF", ".heic")])
)
def test_formats_whose_decoders_use_threads_are_read_where_none_may_start(
    name: str, suffix: str
) -> None:
    if suffix and not has_package(suffix):
        pytest.skip("its package is optional")
    assert not suffix or name in optional_formats()
    options = {"tile_size": 512} if name == "HEIF" else {}
    encoded = []
    for size in ((64, 48), (1600, 1200)):
        buffer = io.BytesIO()
        draw_image("RGB", *size).save(buffer, name, **options)
        encoded.append({"status": "ok", "encoded": buffer.getvalue()})
    blocks = preparer()(pa.Table.from_pylist(encoded, schema=ENCODED))
    rows = [row for block in blocks for row in block.to_pylist()]
    assert [(row["status"], row["error"]) for row in rows] == [("ok", None)] * 2
    assert [(row["width"], row["height"]) for row in rows] == [(64, 48), (1600, 1200)]


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stages.opening.optional_formats", lambda: ())
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    heads = {"heif": b"\0\0\0\x18ftypheic" + bytes(60), "jxl": b"\xff\x0a" + bytes(60)}
    for extra, head in heads.items():
        row = decode_row(head, ResizeRule(64, 128), MAX_PIXELS)
        assert (row["status"], f".[{extra}]" in row["error"]) == ("undecodable", True)


def with_scans(count: int, size: int = 64) -> bytes:
    """A progressive JPEG in which the shortest scan stands `count` times more."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), "gray").save(file, "JPEG", progressive=True)
    encoded = file.getvalue()
    starts = [found.start() for found in re.finditer(b"\xff\xda", encoded)]
    first, *others = starts[1:]
    stop = min(encoded.index(mark, first + 2) for mark in (b"\xff\xda", b"\xff\xc4") if mark in
               encoded[first + 2 :])  # fmt: skip
    scan = encoded[first:stop]
    assert others and len(scan) < 40
    return encoded[:stop] + scan * count + encoded[stop:]


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    """Each scan may have 17 bytes, and is a pass over all blocks of the image."""
    rows = [decode_row(with_scans(n), ResizeRule(32, 64), MAX_PIXELS) for n in (20, 2000)]
    assert [row["status"] for row in rows] == [OK, UNDECODABLE]
    assert "more than 1000 scans" in rows[1]["error"]
    assert header_row(with_scans(2000), ResizeRule(32, 64), MAX_PIXELS, None) is None
