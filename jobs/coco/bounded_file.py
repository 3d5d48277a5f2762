"""A JSON file whose reading is bounded, so that no document can fill the memory or the stack.

ijson names every level of nesting, and a name grows with its level: 400 kB of `[` took 21 GB of
memory. It also holds a whole entry, and a whole text or number, before it hands them on. This
reader counts levels and bytes in what ijson reads, before ijson sees it.
"""

import re
from typing import BinaryIO

import numpy as np

from pipeline.storage.errors import InputError

DEEPEST = 100  # levels of nesting; those of COCO's format are 5
# An outline of a million points has as many bytes; Python needs 20 times that for it.
MOST_ENTRY_BYTES = 16 << 20
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as int8: levels up, levels down
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_MARKS = b"[]{},:"


class BoundedFile:
    """A binary file to read from its beginning. Raises InputError, which begins with `name`."""

    def __init__(self, file: BinaryIO, name: str):
        self._file, self._name = file, name
        self._depth = 0
        self._list_depth = 0  # the depth of the lists of entries; 0 before the first bracket
        self._in_text = self._is_escaped = False
        self._open_bytes = 0  # since the last end of an entry, or of a text or number outside of it

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._count(piece)
        return piece

    def _count(self, piece: bytes) -> None:
        plain = _ESCAPE.sub(b"", piece[self._is_escaped :])
        self._is_escaped = plain.endswith(b"\\")
        parts = plain.split(b'"')  # texts, and what stands between them, by turns
        between = b"".join(parts[self._in_text :: 2])
        self._in_text ^= len(parts) % 2 == 0
        lowest = self._follow_brackets(between)
        has_mark = len(parts) > 1 or len(between.translate(None, _MARKS)) < len(between)
        if lowest > self._list_depth or not has_mark:
            self._open_bytes += len(piece)
        else:
            self._open_bytes = len(piece)
        if self._open_bytes > MOST_ENTRY_BYTES:
            raise InputError(
                f"{self._name}: an entry is larger than {MOST_ENTRY_BYTES >> 20} MiB, which is no "
                "image, category, annotation or detection in COCO's format"
            )

    def _follow_brackets(self, text: bytes) -> int:
        """Count levels in `text`, which is outside of texts; return the lowest level."""
        steps = text.translate(_STEPS, _NO_BRACKETS)
        before = self._depth
        if not steps:
            return before
        if not self._list_depth:
            self._list_depth = 1 if text.lstrip()[:1] == b"[" else 2
        depths = before + np.cumsum(np.frombuffer(steps, np.int8), dtype=np.int64)
        if depths.max() > DEEPEST:
            raise InputError(
                f"{self._name}: its JSON is nested deeper than {DEEPEST} levels, which is nothing "
                "in COCO's format"
            )
        self._depth = int(depths[-1])
        return min(before, int(depths.min()))
