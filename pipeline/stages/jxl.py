"""The size and the orientation of a JPEG XL image, from its header.

The package that decodes JPEG XL tells the size only after it has decoded all pixels. Source:
ISO/IEC 18181-1 (the codestream's SizeHeader and ImageMetadata) and 18181-2 (the boxes).
"""

from collections.abc import Iterator

CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
CODESTREAM = b"\xff\x0a"

_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height


class _Bits:
    """Reads bits of a codestream, the lowest first."""

    def __init__(self, content: bytes):
        self._left = int.from_bytes(content, "little")

    def read(self, count: int) -> int:
        value = self._left & ((1 << count) - 1)
        self._left >>= count
        return value

    def size(self) -> int:
        return 1 + self.read((9, 13, 18, 30)[self.read(2)])


def header(encoded: bytes) -> tuple[int, int, int] | None:
    """The width and height as stored, and the orientation (1 to 8); None if it is no JPEG XL."""
    stream = encoded if encoded.startswith(CODESTREAM) else b"".join(_streams(encoded))
    if not stream.startswith(CODESTREAM):
        return None
    bits = _Bits(stream[2:34])
    small = bits.read(1)
    height = 8 * (1 + bits.read(5)) if small else bits.size()
    ratio = bits.read(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        width = height * across // down
    else:
        width = 8 * (1 + bits.read(5)) if small else bits.size()
    has_defaults, has_fields = bits.read(1), bits.read(1)
    orientation = 1 + bits.read(3) if has_fields and not has_defaults else 1
    return width, height, orientation


def _streams(encoded: bytes) -> Iterator[bytes]:
    """The beginnings of the parts of the codestream in a container."""
    if not encoded.startswith(CONTAINER):
        return
    at = 0
    while at + 16 <= len(encoded):
        length, name = int.from_bytes(encoded[at : at + 4], "big"), encoded[at + 4 : at + 8]
        start = at + 8
        if length == 1:
            length, start = int.from_bytes(encoded[start : start + 8], "big"), at + 16
        end = at + length if length else len(encoded)
        if name == b"jxlp":
            start += 4
        if name in (b"jxlc", b"jxlp"):
            yield encoded[start : min(end, start + 64)]
        if end <= at:
            return
        at = end
