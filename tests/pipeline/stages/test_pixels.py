"""Images of 16 and 32 bits are shown by a range that fits; others are as they were."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.resize import ResizeRule
from pipeline.isolation.child import Row
from pipeline.stages.decode import decode_row

RULE = ResizeRule(32, 48)
Array = np.ndarray[Any, Any]
RAMP = np.linspace(0, 1, 48)[None].repeat(32, 0)  # (32, 48), from black to white


def tiff(values: Array, *, order: str = "<", **more: Any) -> bytes:
    """Write an uncompressed TIFF by hand. `more` has further tags, named `t280` for 280."""
    values = values.astype(values.dtype.newbyteorder(order))
    rows, columns = values.shape[:2]
    bands = 1 if values.ndim == 2 else values.shape[2]
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags: dict[int, Any] = {256: columns, 257: rows, 258: (values.itemsize * 8,) * bands, 259: 1}
    tags |= {262: 2 if bands >= 3 else 1, 273: 0, 277: bands, 278: rows, 279: values.nbytes}
    tags |= {339: (kind,) * bands}
    tags |= {int(name[1:]): value for name, value in more.items()}
    types = {273: "I", 279: "I", 256: "I", 257: "I", 340: values.dtype.char, 341: values.dtype.char}
    codes = {"H": 3, "I": 4, "f": 11, "d": 12, "h": 8, "i": 9, "B": 1, "b": 6}
    at, entries, extra = 8 + 2 + 12 * len(tags) + 4, b"", b""
    for tag, value in sorted(tags.items()):
        if isinstance(value, str):
            data, code, count = value.encode() + b"\0", 2, len(value) + 1
        else:
            items = value if isinstance(value, tuple) else (value,)
            letter = types.get(tag, "H").replace("L", "I").replace("l", "i")
            data, code, count = (
                struct.pack(f"{order}{len(items)}{letter}", *items),
                codes[letter],
                len(items),
            )
        if value == 0 and tag == 273:
            data = b"AT  "
        if len(data) > 4:
            data, extra = struct.pack(f"{order}I", at + len(extra)), extra + data
        entries += struct.pack(f"{order}HHI", tag, code, count) + data.ljust(4, b"\0")
    entries = entries.replace(b"AT  ", struct.pack(f"{order}I", at + len(extra)))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return (
        head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + extra + values.tobytes()
    )


def saved(values: Array, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, name, **options)
    return file.getvalue()


def failed(encoded: bytes) -> Row:
    row = decode_row(encoded, RULE, 1_000_000)
    assert row["status"] == "undecodable"
    return row


def gray(encoded: bytes) -> Array:
    row = decode_row(encoded, RULE, 1_000_000)
    assert row["status"] == "ok", row["error"]
    pixels = np.frombuffer(row["pixels"], np.uint8).reshape(row["rows"], row["columns"], 3)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    return pixels[..., 0].astype(int)


def is_ramp(pixels: Array, without: tuple[slice, slice] | None = None, within: int = 6) -> None:
    """Check that pixels are those of RAMP, but for no-data, which is black."""
    different = np.abs(pixels - RAMP * 255)
    if without is not None:
        assert (pixels[without] == 0).all()
        different[without] = 0
    assert different.max() <= within


CORNER = (slice(0, 8), slice(0, 8))
SPOT = (slice(4, 5), slice(40, 41))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("spoilt", [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e20, -9999, -32768])
@pytest.mark.parametrize("scale", [1, 0.2, 1000, 255.5, 1e-6])
@pytest.mark.parametrize("where", [CORNER, SPOT], ids=["corner", "spot"])
def test_no_data_in_floating_point(order: str, spoilt: float, scale: float, where: Any) -> None:
    values = (RAMP * scale).astype(np.float32)
    values[where] = spoilt
    pixels = gray(tiff(values, order=order))
    if scale == 0.2:  # an underexposed image from 0 to 1 stays one
        pixels = pixels * 5
    is_ramp(pixels, where)


def test_gdal_says_what_no_data_is() -> None:
    values = (RAMP * 100 + 1).astype(np.float32)
    values[CORNER] = 9000
    is_ramp(gray(tiff(values, t42113="9000")), CORNER)
    whole = (RAMP * 4000 + 1).astype(np.uint16)
    whole[CORNER] = 9000
    is_ramp(gray(tiff(whole, t42113="9000 ")), CORNER, 8)
    assert gray(tiff(values, t42113="nan")).max() > 200


def test_floating_point_from_zero_to_one_is_exact() -> None:
    values = np.arange(256, dtype=np.float32).reshape(16, 16) / 255
    row = decode_row(tiff(values), ResizeRule(16, 16), 1000)
    pixels = np.frombuffer(row["pixels"], np.uint8).reshape(16, 16, 3)
    assert pixels[..., 0].reshape(-1).tolist() == list(range(256))


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint32, np.int16, np.uint16])
def test_whole_numbers_up_to_255_are_8_bits(kind: Any) -> None:
    values = np.floor(RAMP * 200).astype(kind)
    assert (gray(tiff(values)) == values).all()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.uint32])
def test_integers_of_few_bits(bits: int, kind: Any) -> None:
    is_ramp(gray(tiff((RAMP * (2**bits - 1)).astype(kind))), within=1)
    if kind == np.uint16:
        is_ramp(gray(saved((RAMP * (2**bits - 1)).astype(kind), "PNG")), within=1)
        is_ramp(
            gray(saved((RAMP * (2**bits - 1)).astype(kind), "TIFF", compression="tiff_lzw")),
            within=1,
        )


def test_16_bits_in_full_are_as_ever() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (32, 48), np.uint16)
    expected = (values.astype(np.float32) * (255.0 / 65535.0)).astype(np.uint8)
    assert (gray(saved(values, "PNG")) == expected).all()
    assert (gray(saved(values, "TIFF")) == expected).all()


@pytest.mark.parametrize(
    ("kind", "spoilt"),
    [
        (np.int16, -9999),
        (np.int16, -32768),
        (np.int32, -(2**31)),
        (np.int32, 2**31 - 1),
        (np.uint16, 65535),
        (np.uint32, 2**32 - 1),
    ],
)
def test_no_data_in_integers(kind: Any, spoilt: int) -> None:
    values = (RAMP * 4095).astype(kind)
    values[CORNER] = spoilt
    is_ramp(gray(tiff(values)), CORNER, 1)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.float32])
def test_negative_values_are_shown(kind: Any) -> None:
    is_ramp(gray(tiff((RAMP * 200 - 100).astype(kind))))


@pytest.mark.parametrize("kind", [np.int32, np.uint32, np.float32])
def test_large_values_are_shown(kind: Any) -> None:
    is_ramp(gray(tiff((RAMP * 2_000_000 + 1_000_000).astype(kind))))


def test_tags_of_the_range_are_believed_where_they_can_be_true() -> None:
    values = (RAMP * 1500 + 500).astype(np.uint16)
    found = gray(tiff(values, t280=0, t281=4000))
    assert np.abs(found - values / 4000 * 255).max() <= 1
    is_ramp(gray(tiff((RAMP * 4095).astype(np.uint16), t280=0, t281=65535)), within=1)
    lying = gray(tiff(values, t280=0, t281=600))
    assert np.abs(lying - values / 2047 * 255).max() <= 128
    assert len(np.unique(lying)) > 40
    real = (RAMP * 2).astype(np.float32)
    assert np.abs(gray(tiff(real, t340=0.0, t341=4.0)) - real / 4 * 255).max() <= 1


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_white_is_zero(kind: Any) -> None:
    most = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[kind]
    is_ramp(gray(tiff(((1 - RAMP) * most).astype(kind), t262=0)), within=1)


@pytest.mark.parametrize("value", [0, 1, 0.5, 7, 300, -5, 70_000])
def test_a_constant_image_is_an_image(value: float) -> None:
    pixels = gray(tiff(np.full((32, 48), value, np.float32)))
    assert len(np.unique(pixels)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.4e38])
def test_an_image_of_no_data_says_so(value: float) -> None:
    assert "no-data" in failed(tiff(np.full((32, 48), value, np.float32)))["error"]


def test_pfm_is_scaled() -> None:
    is_ramp(gray(b"Pf\n48 32\n-1\n" + (RAMP * 30).astype("<f4")[::-1].tobytes()))


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int64, np.uint64])
def test_samples_that_pillow_does_not_read_are_a_failed_row(kind: Any) -> None:
    types = {np.float16: "f2", np.float64: "f8"}
    values = (RAMP * 100).astype(types.get(kind, kind))
    assert "TIFF (unknown pixel mode)" in failed(tiff(values))["error"]


@pytest.mark.parametrize("bands", [2, 5, 8])
def test_many_bands_are_a_failed_row_or_the_first_three(bands: int) -> None:
    values = np.repeat((RAMP * 255).astype(np.uint8)[:, :, None], bands, 2)
    assert "TIFF" in failed(tiff(values, t262=1))["error"]


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint16])
def test_compressed_values_are_those_uncompressed(kind: Any, compression: str) -> None:
    values = (RAMP * 4095).astype(kind)
    assert (gray(saved(values, "TIFF", compression=compression)) == gray(tiff(values))).all()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [np.float32, np.int32, np.int16, np.uint16])
def test_compressed_values_in_either_order(kind: Any, order: Any) -> None:
    values = (RAMP * 4095).astype(kind)
    raw = values.astype(values.dtype.newbyteorder(order)).tobytes()
    packed = zlib.compress(raw)
    encoded = tiff(values, order=order, t259=8, t279=len(packed))
    assert (gray(encoded[: -len(raw)] + packed) == gray(tiff(values))).all()


def test_cmyk_jpeg_of_adobe_is_not_inverted(tmp_path: Any) -> None:
    cmyk = Image.new("CMYK", (48, 32), (0, 255, 255, 0))
    for name in ("JPEG", "TIFF"):
        file = io.BytesIO()
        cmyk.save(file, name)
        row = decode_row(file.getvalue(), RULE, 10_000)
        pixels = np.frombuffer(row["pixels"], np.uint8).reshape(32, 48, 3)
        assert np.abs(pixels[16, 24].astype(int) - (255, 0, 0)).max() <= 3


def colours(encoded: bytes) -> Array:
    row = decode_row(encoded, RULE, 1_000_000)
    assert row["status"] == "ok", row["error"]
    return (
        np.frombuffer(row["pixels"], np.uint8).reshape(row["rows"], row["columns"], 3).astype(int)
    )


COLOURED = np.stack([RAMP, 1 - RAMP, RAMP**2], 2)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_colours_in_planes_and_pixels(kind: Any, planar: int, order: str) -> None:
    values = (COLOURED * np.iinfo(kind).max).astype(kind)
    content = (
        values
        if planar == 1
        else np.ascontiguousarray(values.transpose(2, 0, 1)).reshape(values.shape)
    )
    encoded = tiff(content, order=order, t284=planar)
    if planar == 2:  # one strip for each plane
        size = values.nbytes // 3
        start = len(encoded) - values.nbytes
        strips = tuple(start + 24 + index * size for index in range(3))
        encoded = tiff(content, order=order, t284=2, t273=strips, t279=(size,) * 3)
    assert np.abs(colours(encoded) - COLOURED * 255).max() <= 1


@pytest.mark.parametrize("bits", [10, 12])
def test_colours_of_few_bits_in_16_are_not_black(bits: int) -> None:
    values = (COLOURED * (2**bits - 1)).astype(np.uint16)
    assert "16 bits" in failed(tiff(values))["error"]


def test_a_palette_of_8_bits_is_not_black() -> None:
    values = (RAMP * 255).astype(np.uint8)
    ramp = tuple(range(256))
    for colours_ in (ramp * 3, tuple(257 * value for value in ramp) * 3):
        assert (gray(tiff(values, t262=3, t320=colours_)) == values).all()
