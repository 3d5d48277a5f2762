"""How many pixels an image file may have, from its head: what decoding it may take.

Nothing is decoded here, and nothing is believed: of several sizes in a file, the largest counts.
The decoder has its own limit (`--max-pixels`), for the size that it finds.
"""

import struct
from itertools import islice

from pipeline.stages import jpeg

UNKNOWN = 26_000_000  # pixels that an image of another format counts as, unless it is tiny
MOST_PER_BYTE = 10_000  # pixels; deflate packs 1000 bytes into one, of eight pixels each
MOST_PARTS = 1000  # chunks or segments that are looked at
_PNG = b"\x89PNG\r\n\x1a\n"


def pixels_of(encoded: bytes, most: int) -> int:
    """The pixels that an image counts as: those of its head, or those that it may have.

    `most` is what the decoder allows, and what a head of too many parts counts as.
    """
    found = None
    try:
        if encoded.startswith(_PNG):
            found = _pixels_of_png(encoded, most)
        elif encoded.startswith(jpeg.START):
            found = _pixels_of_jpeg(encoded, most)
        elif encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
            found = _pixels_of_webp(encoded)
    except struct.error:  # it ends before
        pass
    return min(UNKNOWN, most, len(encoded) * MOST_PER_BYTE) if found is None else found


def _pixels_of_png(encoded: bytes, beyond: int) -> int | None:
    """The pixels of the head; `beyond` for one of more than MOST_PARTS; None for what is none."""
    at, most = len(_PNG), 0
    for _ in range(MOST_PARTS):
        length, kind = struct.unpack_from(">I4s", encoded, at)
        if kind == b"IDAT":
            return most
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", encoded, at + 8)
            most = max(most, width * height)
        at += length + 12
    return beyond


def _pixels_of_jpeg(encoded: bytes, beyond: int) -> int | None:
    """As `_pixels_of_png`."""
    most = 0
    parts = list(islice(jpeg.segments(encoded), MOST_PARTS))
    for marker, start, _ in parts:
        if marker == jpeg.SCAN:
            return most
        if marker in jpeg.FRAMES:
            height, width = struct.unpack_from(">HH", encoded, start + 5)
            most = max(most, width * height)
    return beyond if len(parts) == MOST_PARTS else None


def _pixels_of_webp(encoded: bytes) -> int | None:
    kind = encoded[12:16]
    if kind == b"VP8X":  # its frames may not be larger than its canvas
        low, high = struct.unpack_from("<IH", encoded, 24)
        return ((low & 0xFFFFFF) + 1) * ((low >> 24 | high << 8) + 1)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", encoded, 21)
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", encoded, 26)
        return (width & 0x3FFF) * (height & 0x3FFF)
    return None
