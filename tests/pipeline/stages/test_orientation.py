"""Pixels are those displayed, whatever format tells the orientation, and whoever undoes it."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model.resize import ResizeRule
from pipeline.isolation.child import Row
from pipeline.stages import jxl
from pipeline.stages.decode import decode_row
from pipeline.stages.opening import optional_formats

SHOWN = np.zeros((48, 96, 3), np.uint8)  # as displayed; the corners have four colours
SHOWN[:16, :16], SHOWN[:16, -16:], SHOWN[-16:, :16] = (255, 255, 255), (250, 0, 0), (0, 0, 250)

# How an upright image is stored so that each orientation shows it (EXIF 2.32, tag 0x0112).
STORE = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.transpose(1, 0, 2),
    6: lambda shown: shown.transpose(1, 0, 2)[::-1],
    7: lambda shown: shown.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda shown: shown.transpose(1, 0, 2)[:, ::-1],
}
FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "JPEG progressive": {"quality": 95, "progressive": True},
    "MPO": {"quality": 95, "save_all": True},
    "PNG": {},
    "WEBP": {"quality": 95},
    "WEBP lossless": {"lossless": True},
    "TIFF": {},
    "TIFF tiff_lzw": {"compression": "tiff_lzw"},
    "TIFF big": {"big_tiff": True},
    "AVIF": {"quality": 95},
}
if "HEIF" in optional_formats():
    FORMATS["HEIF"] = {"quality": 95}


def decoded(encoded: bytes) -> tuple[Row, np.ndarray[Any, Any]]:
    row = decode_row(encoded, ResizeRule(48, 96), 1_000_000)
    assert row["status"] == "ok", row["error"]
    pixels = np.frombuffer(row["pixels"], np.uint8).reshape(row["rows"], row["columns"], 3)
    return row, pixels.astype(int)


def stored(name: str, orientation: Any, as_if: int, **more: Any) -> bytes:
    """Encode SHOWN as stored for `as_if`, with EXIF that says `orientation`."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORE[as_if](SHOWN)))
    file = io.BytesIO()
    options = {"exif": exif.tobytes(), **FORMATS[name], **more}
    image.save(file, name.split()[0], **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_turned_once(name: str, orientation: int) -> None:
    row, pixels = decoded(stored(name, orientation, orientation))
    assert (row["orientation"], row["width"], row["height"]) == (orientation, 96, 48)
    assert np.abs(pixels - SHOWN).mean() < 3


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_orientation_out_of_range_turns_nothing(name: str, orientation: int) -> None:
    row, pixels = decoded(stored(name, orientation, 1))
    assert row["orientation"] == 1
    assert np.abs(pixels - SHOWN).mean() < 3


def exif_of(kind: int, count: int, value: bytes) -> bytes:
    """EXIF with an orientation of any type."""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", 0x0112, kind, count) + value


@pytest.mark.parametrize(
    "exif",
    [
        exif_of(2, 2, b"6\0\0\0") + bytes(4),
        exif_of(3, 2, struct.pack("<HH", 9, 6)) + bytes(4),
        exif_of(5, 1, struct.pack("<I", 500)) + bytes(4),
        exif_of(7, 4, b"\xff\xff\xff\xff") + bytes(4),
        exif_of(99, 1, b"\6\0\0\0") + bytes(4),
        exif_of(3, 1, b"\6\0")[:-6],
        b"Exif\0\0nonsense",
        b"",
    ],
    ids=["text", "two", "no rational", "bytes", "unknown", "short", "nonsense", "none"],
)
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_of_another_type_costs_no_pixels(name: str, exif: bytes) -> None:
    _, pixels = decoded(stored(name, 1, 1, exif=exif))
    assert np.abs(pixels - SHOWN).mean() < 3


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_xmp_tells_the_orientation_where_exif_does_not(name: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    image = Image.fromarray(np.ascontiguousarray(STORE[6](SHOWN)))
    file = io.BytesIO()
    options: dict[str, Any] = {"xmp": xmp}
    if name == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options = {"pnginfo": info}
    if name == "TIFF":
        options = {"tiffinfo": {700: xmp}}
    image.save(file, name, **options)
    row, pixels = decoded(file.getvalue())
    assert (row["orientation"], row["width"], row["height"]) == (6, 96, 48)
    assert np.abs(pixels - SHOWN).mean() < 3


def bits(*fields: tuple[int, int]) -> bytes:
    """Pack (value, number of bits) as JPEG XL does: the lowest bit first."""
    value = at = 0
    for number, width in fields:
        value, at = value | number << at, at + width
    return value.to_bytes(-(-at // 8) + 4, "little")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_of_jpeg_xl(orientation: int) -> None:
    large = bits((0, 1), (1, 2), (4095, 13), (0, 3), (3, 2), (100_000, 30), (0, 1), (1, 1))
    assert jxl.header(b"\xff\x0a" + large) == (100_001, 4096, 1)
    small = bits((1, 1), (11, 5), (2, 3), (0, 1), (1, 1), (orientation - 1, 3))
    assert jxl.header(b"\xff\x0a" + small) == (115, 96, orientation)
    defaults = bits((1, 1), (11, 5), (0, 3), (3, 5), (1, 1))
    assert jxl.header(b"\xff\x0a" + defaults) == (32, 96, 1)
    box = struct.pack(">I4sI", 30, b"jxlp", 0) + b"\xff\x0a" + small
    assert jxl.header(jxl.CONTAINER + box.ljust(30, b"\0")) == (115, 96, orientation)
    assert jxl.header(b"\xff\xd8\xff") is None


@pytest.mark.skipif("JXL" not in optional_formats(), reason="needs pillow-jxl-plugin")
def test_jpeg_xl_is_decoded_and_its_size_checked_first() -> None:
    file = io.BytesIO()
    Image.fromarray(SHOWN).save(file, "JXL", lossless=True)
    assert (decoded(file.getvalue())[1] == SHOWN).all()
    assert jxl.header(file.getvalue()) == (96, 48, 1)
    refused = decode_row(file.getvalue(), ResizeRule(48, 96), 96 * 48 - 1)
    assert (refused["status"], refused["width"]) == ("too_many_pixels", 96)


@pytest.mark.skipif("HEIF" not in optional_formats(), reason="needs pillow-heif")
def test_heif_gives_its_main_image() -> None:
    file = io.BytesIO()
    other = Image.new("RGB", (64, 64), "green")
    Image.fromarray(SHOWN).save(
        file, "HEIF", quality=95, save_all=True, append_images=[other], primary_index=0
    )
    assert np.abs(decoded(file.getvalue())[1] - SHOWN).mean() < 3
    file = io.BytesIO()
    other.save(file, "HEIF", save_all=True, append_images=[Image.fromarray(SHOWN)], primary_index=1)
    assert np.abs(decoded(file.getvalue())[1] - SHOWN).mean() < 3
