"""Copies of encoded images without their metadata.

A damaged EXIF, XMP, ICC or text block must not cost an intact image. Where a decoder refuses a
file, it is tried again without the blocks that say nothing about pixels.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator

from pipeline.stages import jpeg
from pipeline.stages.tiff import without_other_tags

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_PNG_ORIENTATION = (b"eXIf", b"iTXtXML:com.adobe.xmp\0")
_WEBP_PIXELS = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})
# JPEG: an APP0 (JFIF) and an APP14 (Adobe) say how colours are stored.
_JPEG_METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})


def copies_without_metadata(encoded: bytes) -> Iterator[bytes]:
    """Yield copies of an image with fewer and fewer blocks of metadata; none if it has none."""
    last = encoded
    for remove in (_png_oriented, _png, _jpeg, _webp, without_other_tags, _isobmff):
        copy = remove(encoded)
        if copy is not None and copy != last:
            last = copy
            yield copy


def _png_oriented(encoded: bytes) -> bytes | None:
    """A PNG with its pixels, and with the blocks that tell its orientation where intact."""
    return _png_of(encoded, lambda name, data: (name + data).startswith(_PNG_ORIENTATION))


def _png(encoded: bytes) -> bytes | None:
    return _png_of(encoded, lambda name, data: False)


def _png_of(encoded: bytes, keeps: Callable[[bytes, bytes], bool]) -> bytes | None:
    """A PNG with the chunks of its pixels as they are, and those others that `keeps` accepts."""
    if not encoded.startswith(_PNG):
        return None
    chunks, at = [_PNG], len(_PNG)
    while at + 12 <= len(encoded):
        length, name = struct.unpack_from(">I4s", encoded, at)
        end = at + 12 + length
        if end > len(encoded):
            break  # the file ends early: Pillow is to see that
        data, check = encoded[at + 8 : end - 4], encoded[end - 4 : end]
        intact = zlib.crc32(name + data).to_bytes(4, "big") == check
        if name in _PNG_PIXELS or (intact and keeps(name, data)):
            chunks.append(encoded[at:end])
        at = end
    return b"".join((*chunks, encoded[at:]))


def _jpeg(encoded: bytes) -> bytes | None:
    if not encoded.startswith(jpeg.START):
        return None
    parts, at = [encoded[:2]], 2
    for marker, start, at in jpeg.segments(encoded):
        if marker not in _JPEG_METADATA:
            parts.append(encoded[start:at])
    return b"".join((*parts, encoded[at:]))


def _webp(encoded: bytes) -> bytes | None:
    if encoded[:4] != b"RIFF" or encoded[8:12] != b"WEBP":
        return None
    chunks, at = [], 12
    while at + 8 <= len(encoded):
        name, length = struct.unpack_from("<4sI", encoded, at)
        end = at + 8 + length + length % 2
        if name in _WEBP_PIXELS:
            chunks.append(encoded[at:end])
        at = end
    content = b"".join(chunks)
    # The announced length keeps its difference to the real one: a file that ends early stays so.
    missing = int.from_bytes(encoded[4:8], "little") + 8 - len(encoded)
    length = max(0, len(content) + 4 + missing)
    return b"".join((b"RIFF", struct.pack("<I", length & 0xFFFFFFFF), b"WEBP", content))


def _isobmff(encoded: bytes) -> bytes | None:
    """AVIF or HEIF whose items of EXIF and XMP have another type, which decoders pass over."""
    if encoded[4:8] != b"ftyp":
        return None
    items = re.compile(rb"(infe[\2\3].{3}(?:.{4}|.{6}))(Exif|mime)", re.S)
    return items.sub(rb"\1skip", encoded)
