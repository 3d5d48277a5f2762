"""Damaged metadata costs no pixels, and damaged pixels stay a failure."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model.resize import ResizeRule
from pipeline.isolation.child import Row
from pipeline.stages.decode import decode_row
from pipeline.stages.opening import optional_formats
from tests.pipeline.stages.test_pixels import tiff

RULE = ResizeRule(32, 48)
RANDOM = np.random.default_rng(0)
IMAGE = Image.fromarray(RANDOM.integers(0, 255, (32, 48, 3), np.uint8))
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r xmp:Rating="5"/></x:xmpmeta>'
TAGS = {271: "Maker", 306: "2026:01:01 00:00:00"}
ICC = bytes(36) + b"acsp" + bytes(300)


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x010F], tags[0x0132], tags[0x8769] = "Maker", "2026:01:01 00:00:00", {0x9000: b"0232"}
    return tags.tobytes()


def save(name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    IMAGE.save(file, name, **options)
    return file.getvalue()


def texts() -> PngInfo:
    info = PngInfo()
    info.add_text("a", "text", zip=False)
    info.add_text("b", "text" * 99, zip=True)
    info.add_itxt("c", "text" * 99, zip=True)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    return info


def decode(encoded: bytes) -> Row:
    return decode_row(encoded, RULE, 100_000)


def png_blocks(encoded: bytes) -> Iterator[tuple[int, int]]:
    """The contents and checks of the chunks that hold no pixels."""
    at = 8
    while at < len(encoded):
        length, name = struct.unpack_from(">I4s", encoded, at)
        if name not in (b"IHDR", b"IDAT", b"IEND"):
            yield at + 8, at + 12 + length
        at += 12 + length


def jpeg_blocks(encoded: bytes) -> Iterator[tuple[int, int]]:
    at = 2
    while encoded[at + 1] != 0xDA:
        length = int.from_bytes(encoded[at + 2 : at + 4], "big")
        if encoded[at + 1] in range(0xE1, 0xF0) and encoded[at + 1] != 0xEE:
            yield at + 4, at + 2 + length
        at += 2 + length


def webp_blocks(encoded: bytes) -> Iterator[tuple[int, int]]:
    at = 12
    while at < len(encoded):
        name, length = struct.unpack_from("<4sI", encoded, at)
        if name in (b"EXIF", b"ICCP", b"XMP "):
            yield at + 8, at + 8 + length
        at += 8 + length + length % 2


def tiff_blocks(encoded: bytes) -> Iterator[tuple[int, int]]:
    """The type, the count and the value of each tag that says nothing about pixels."""
    (start,) = struct.unpack_from("<I", encoded, 4)
    (count,) = struct.unpack_from("<H", encoded, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", encoded, at)
        if tag in (271, 306, 700, 34665, 34675, 33723):
            yield at + 2, at + 12


def items(encoded: bytes) -> Iterator[tuple[int, int]]:
    """EXIF and XMP in AVIF and HEIF."""
    for content in (exif()[6:], XMP):
        at = encoded.find(content)
        if at >= 0:
            yield at, at + len(content)


def gif_blocks(encoded: bytes) -> Iterator[tuple[int, int]]:
    at = encoded.index(b"a comment")
    yield at, at + 9


Blocks = Callable[[bytes], Iterator[tuple[int, int]]]
ALL: dict[str, tuple[bytes, Blocks]] = {
    "PNG": (save("PNG", exif=exif(), icc_profile=ICC, pnginfo=texts(), dpi=(72, 72)), png_blocks),
    "JPEG": (save("JPEG", exif=exif(), icc_profile=ICC, xmp=XMP, comment=b"x"), jpeg_blocks),
    "WEBP": (save("WEBP", exif=exif(), icc_profile=ICC, xmp=XMP), webp_blocks),
    "TIFF": (
        save("TIFF", exif=exif(), icc_profile=ICC, tiffinfo={700: XMP, 271: "M"}),
        tiff_blocks,
    ),
    "TIFF lzw": (save("TIFF", tiffinfo=TAGS, compression="tiff_lzw"), tiff_blocks),
    "AVIF": (save("AVIF", exif=exif()[6:], xmp=XMP), items),
    "GIF": (save("GIF", comment=b"a comment"), gif_blocks),
}
if "HEIF" in optional_formats():
    ALL["HEIF"] = save("HEIF", exif=exif(), xmp=XMP), items


@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_metadata_costs_no_pixels(name: str, data: st.DataObject) -> None:
    encoded, blocks = ALL[name]
    before = decode(encoded)
    spans = list(blocks(encoded))
    assert spans and before["status"] == "ok", before
    broken = bytearray(encoded)
    for _ in range(data.draw(st.integers(1, 6))):
        start, end = data.draw(st.sampled_from(spans))
        broken[data.draw(st.integers(start, end - 1))] = data.draw(st.integers(0, 255))
    after = decode(bytes(broken))
    assert after["status"] == "ok", after["error"]
    if after["orientation"] == 1:  # the damage may have made one, in bytes that still are EXIF
        assert after["pixels"] == before["pixels"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"A"])
def test_metadata_of_one_byte_costs_no_pixels(name: str, filler: bytes) -> None:
    encoded, blocks = ALL[name]
    broken = bytearray(encoded)
    for start, end in blocks(encoded):
        broken[start:end] = filler * (end - start)
    after = decode(bytes(broken))
    assert (after["status"], after.get("pixels")) == ("ok", decode(encoded)["pixels"])


def chunk(name: bytes, content: bytes, check: int | None = None) -> bytes:
    check = zlib.crc32(name + content) if check is None else check
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


BOMB = zlib.compress(bytes(80_000_000), 9)
PNG_BLOCKS = {
    "zTXt bomb": chunk(b"zTXt", b"a\0\0" + BOMB),
    "iTXt bomb": chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
    "iCCP bomb": chunk(b"iCCP", b"a\0\0" + BOMB),
    "iCCP of an unknown method": chunk(b"iCCP", b"a\0\7" + b"x"),
    "a short pHYs": chunk(b"pHYs", b"\0"),
    "a short gAMA": chunk(b"gAMA", b""),
    "a short cHRM": chunk(b"cHRM", b"1"),
    "a short acTL": chunk(b"acTL", b""),
    "an acTL of no frames": chunk(b"acTL", bytes(8)),
    "an eXIf of nonsense": chunk(b"eXIf", b"nonsense"),
    "an empty eXIf": chunk(b"eXIf", b""),
    "a check of tEXt": chunk(b"tEXt", b"a\0b", 1),
    "a check of tIME": chunk(b"tIME", bytes(7), 1),
    "many texts": b"".join(
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000))) for _ in range(99)
    ),
    "EXIF as text": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 3\nzz\n"),
}


@pytest.mark.parametrize("block", PNG_BLOCKS.values(), ids=PNG_BLOCKS)
@pytest.mark.parametrize("where", ["before", "after"])
def test_blocks_of_png(block: bytes, where: str) -> None:
    encoded = save("PNG")
    at = 33 if where == "before" else len(encoded) - 12
    found = decode(encoded[:at] + block + encoded[at:])
    assert (found["status"], found.get("pixels")) == ("ok", decode(encoded)["pixels"])


def test_the_orientation_of_a_png_outlives_another_damaged_block() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    encoded = save("PNG", exif=tags)
    found = decode(encoded[:33] + PNG_BLOCKS["zTXt bomb"] + encoded[33:])
    assert (found["status"], found["orientation"], found["width"]) == ("ok", 6, 32)


@pytest.mark.parametrize("marker", [0xE1, 0xE2, 0xED, 0xEC, 0xFE])
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"ICC_PROFILE\0", b"ICC_PROFILE\0\1"),
        *(b"MPF\0", b"MPF\0II*\0\x08\0\0\0\xff\xff", b"Photoshop 3.0\0", b"\xff" * 40),
        *(b"Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff", b"http://ns.adobe.com/xap/1.0/\0<"),
    ],
)
def test_blocks_of_jpeg(marker: int, content: bytes) -> None:
    encoded = save("JPEG")
    block = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    found = decode(encoded[:20] + block + encoded[20:])
    assert (found["status"], found.get("pixels")) == ("ok", decode(encoded)["pixels"])


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF", "GIF"])
@pytest.mark.parametrize("part", [0.5, 0.8])
def test_an_image_that_ends_early_stays_one(name: str, part: float) -> None:
    encoded = ALL[name][0]
    found = decode(encoded[: int(len(encoded) * part)])
    assert found["status"] in ("truncated", "undecodable")
    if name in ("PNG", "JPEG"):
        assert found["status"] == "truncated"


@pytest.mark.parametrize("name", ["IHDR", "IDAT"])
def test_damaged_pixels_of_a_png_are_not_decoded(name: str) -> None:
    encoded = bytearray(ALL["PNG"][0])
    at = encoded.index(name.encode()) + 4 + (9 if name == "IHDR" else 40)
    encoded[at] ^= 0xFF
    assert decode(bytes(encoded))["status"] in ("undecodable", "truncated")


def preview(full: bytes, **tags: Any) -> bytes:
    """A TIFF of a small preview, whose only lower directory is that of another TIFF."""
    small = tiff(np.zeros((4, 6), np.uint8), t254=1, t330=0, **tags)
    moved = bytearray(full)
    (start,) = struct.unpack_from("<I", full, 4)
    (count,) = struct.unpack_from("<H", full, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number, value = struct.unpack_from("<HHII", full, at)
        if tag == 273 or number * {3: 2, 4: 4}.get(kind, 1) > 4:
            struct.pack_into("<I", moved, at + 8, value + len(small))
    entry = small.index(struct.pack("<H", 330), 10)
    link = struct.pack("<HHII", 330, 4, 1, start + len(small))
    return small[:entry] + link + small[entry + 12 :] + moved


def test_the_full_image_is_decoded_and_not_the_preview() -> None:
    full = tiff(np.asarray(IMAGE), t254=0)
    found = decode(preview(full))
    assert (found["status"], found["pixels"]) == ("ok", decode(full)["pixels"])
    turned = decode(preview(full, t274=6))
    assert (turned["orientation"], turned["width"], turned["height"]) == (6, 32, 48)
    raw = tiff(np.asarray(IMAGE)[..., 0].astype(np.uint16), t254=0, t262=32803)
    failed = decode(preview(raw))
    assert (failed["status"], "preview" in failed["error"]) == ("undecodable", True)


def test_the_largest_of_several_icons_is_decoded() -> None:
    icon = Image.fromarray(RANDOM.integers(0, 255, (256, 256, 3), np.uint8))
    for name, sizes in (("ICO", [(16, 16), (256, 256), (32, 32)]), ("ICNS", None)):
        file = io.BytesIO()
        icon.save(file, name, **({"sizes": sizes} if sizes else {}))
        found = decode_row(file.getvalue(), ResizeRule(256, 2048), 10_000_000)
        assert found["status"] == "ok"
        assert found["width"] == found["height"] >= 256


@pytest.mark.parametrize("name", ["GIF", "PNG", "TIFF", "MPO", "WEBP", "AVIF"])
def test_the_first_of_several_frames_is_decoded(name: str) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (48, 32), colour) for colour in ("red", "blue")]
    frames[0].save(file, name, save_all=True, append_images=frames[1:])
    pixels = np.frombuffer(decode(file.getvalue())["pixels"], np.uint8).reshape(32, 48, 3)
    assert np.abs(pixels[16, 24].astype(int) - (255, 0, 0)).max() < 6
