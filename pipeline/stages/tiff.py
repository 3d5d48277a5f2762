"""Edits of the directories of TIFF files, before Pillow reads them.

Source: TIFF 6.0, section 2, and the design of BigTIFF (libtiff.gitlab.io/libtiff). A directory is a
count, entries (tag, type, number of values, value or its offset), and the offset of the next one.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import TiffImagePlugin

ORIENTATION = 274
NEW_SUBFILE_TYPE = 254  # bit 0: this image is a smaller version of another one in the file
SUB_DIRECTORIES = 330
NO_DATA = 42113  # GDAL's, as text

# The tags that say how the pixels are stored, in TIFF 6.0 and its technical notes.
_OF_PIXELS = frozenset(
    int(tag)
    for tag in (
        "254 255 256 257 258 259 262 263 266 273 274 277 278 279 280 281 284 292 293 301 317 320 "
        "322 323 324 325 330 332 334 338 339 340 341 347 512 513 514 515 517 518 519 520 521 529 "
        f"530 531 532 {NO_DATA}"
    ).split()
)


@dataclass(frozen=True)
class _Layout:
    """The widths of the fields of a file."""

    order: str  # "<" or ">", as for `struct`
    big: bool

    @property
    def count(self) -> str:
        return f"{self.order}{'Q' if self.big else 'H'}"

    @property
    def offset(self) -> str:
        return f"{self.order}{'Q' if self.big else 'I'}"

    @property
    def entry(self) -> int:
        return 20 if self.big else 12

    @property
    def first(self) -> int:
        """Where the offset of the first directory stands."""
        return 8 if self.big else 4


def _layout(encoded: bytes) -> _Layout | None:
    if encoded[:2] not in (b"II", b"MM"):
        return None
    order = "<" if encoded[:2] == b"II" else ">"
    (version,) = struct.unpack_from(f"{order}H", encoded.ljust(4, b"\0"), 2)
    return _Layout(order, version == 43) if version in (42, 43) else None


def without_other_tags(encoded: bytes) -> bytes | None:
    """The file with no other tags in its first directory than those of the pixels.

    None if that directory has no other tags, or cannot be read.
    """
    layout = _layout(encoded)
    if layout is None:
        return None
    try:
        (start,) = struct.unpack_from(layout.offset, encoded, layout.first)
        (count,) = struct.unpack_from(layout.count, encoded, start)
    except struct.error:
        return None
    entries_at = start + struct.calcsize(layout.count)
    end = entries_at + count * layout.entry
    if end > len(encoded):
        return None
    entries = [encoded[at : at + layout.entry] for at in range(entries_at, end, layout.entry)]
    kept = [
        entry for entry in entries if struct.unpack_from(f"{layout.order}H", entry)[0] in _OF_PIXELS
    ]
    if len(kept) == count:
        return None
    directory = (
        struct.pack(layout.count, len(kept)) + b"".join(kept) + struct.pack(layout.offset, 0)
    )
    return encoded[:start] + directory + encoded[start + len(directory) :]


def is_preview(file: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether the file's first image is a smaller version of another one, as in raw photos."""
    kind = file.tag_v2.get(NEW_SUBFILE_TYPE, 0)
    return isinstance(kind, int) and bool(kind & 1)


def other_directories(file: TiffImagePlugin.TiffImageFile, encoded: bytes) -> Iterator[bytes]:
    """Yield copies of a file that begin with another directory: those below the first, the next."""
    layout = _layout(encoded)
    assert layout is not None  # Pillow has opened it
    below = file.tag_v2.get(SUB_DIRECTORIES, ())
    for offset in (*(below if isinstance(below, tuple) else (below,)), file.tag_v2.next):
        if isinstance(offset, int) and 0 < offset < len(encoded):
            patched = bytearray(encoded)
            struct.pack_into(layout.offset, patched, layout.first, offset)
            yield bytes(patched)
