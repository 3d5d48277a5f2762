"""The header of a JPEG: its segments, its size, and whether all decoders read it alike."""

import re
from collections.abc import Iterator

START, SCAN, END = b"\xff\xd8\xff", 0xDA, 0xD9
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)  # with Huffman's code: baseline, extended, progressive
ADOBE = 0xEE
PROGRESSIVE_FRAMES = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
# Most progressive JPEGs have ten. Each scan is a pass over all blocks, and may have 17 bytes: with
# 40,000 of them 24 megapixels took 38 s, and with 1000 they take 1.5. Other scans have more bytes.
MOST_SCANS = 1000
FILL = re.compile(b"\xff+")  # the last of them begins a marker
WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})


def segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, the start and the end of each segment up to the head of the first scan."""
    at = 2
    while found := FILL.match(encoded, at):
        at = found.end() - 1
        if at + 4 > len(encoded):
            return
        marker = encoded[at + 1]
        length = 0
        if marker not in WITHOUT_LENGTH:
            length = int.from_bytes(encoded[at + 2 : at + 4], "big")
        yield marker, at, at + 2 + length
        at += 2 + length
        if marker in (SCAN, END):
            return


def has_too_many_scans(encoded: bytes) -> bool:
    """Whether a progressive JPEG has more than MOST_SCANS scans."""
    if not encoded.startswith(START):
        return False
    markers = (marker for marker, _, _ in segments(encoded))
    is_progressive = not PROGRESSIVE_FRAMES.isdisjoint(markers)
    return is_progressive and encoded.count(bytes((0xFF, SCAN))) > MOST_SCANS  # no data has these


def is_plain(encoded: bytes) -> bool:
    """Whether this is a JPEG with 8 bits, gray or in YCbCr, in Huffman's code, and with an end."""
    if not encoded.startswith(START):
        return False
    frame, scan = b"", len(encoded)
    for marker, start, end in segments(encoded):
        content = encoded[start + 4 : end]
        if marker in FRAMES:
            if frame or marker not in PLAIN_FRAMES:
                return False
            frame = content
        elif marker == ADOBE and content[:5] == b"Adobe" and content[11:12] != b"\1":
            return False  # its colours may be others than YCbCr
        elif marker == SCAN:
            scan = end
    names = frame[6::3]  # of the components, each of which has three bytes
    return (
        frame[:1] == b"\x08"
        and len(names) in (1, 3)
        and frame[5] == len(names)
        and names != b"RGB"
        and encoded.find(bytes((0xFF, END)), scan) >= 0
    )
