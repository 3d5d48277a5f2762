"""A decoder that was taken over, and answers rows that no image has."""

import io
from collections.abc import Iterator
from typing import Any

from PIL import Image

from model.resize import ResizeRule
from pipeline.stages.decode import decode_rows
from pipeline.stages.decode import load_decoders as load_decoders

Row = dict[str, Any]


def _square() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40)).save(file, "PNG")
    return file.getvalue()


GOOD = _square()
LIES: dict[bytes, Row] = {
    b"no pixels": {"pixels": None},
    b"few pixels": {"pixels": b"few"},
    b"another shape": {"rows": 32, "columns": 128},
    b"no shape": {"rows": None},
    b"huge": {"width": 2**30, "height": 2**30},
    b"flat": {"width": 0},
    b"turned": {"orientation": 9},
    b"other status": {"status": "worker_crash", "pixels": None, "error": "no"},
    b"failed with pixels": {"status": "truncated", "error": "no"},
    b"no reason": {"status": "truncated", "pixels": None},
}


def decode_and_lie(
    images: list[bytes],
    resize: ResizeRule,
    max_pixels: int,
    enlarge: bool,
    tiling: None,
    leave_jpegs: bool,
) -> Iterator[Row]:
    """Rows of real images, and of those whose bytes are a key of LIES."""
    (good,) = decode_rows([GOOD], resize, max_pixels, enlarge)
    for encoded in images:
        if encoded in LIES:
            yield {**good, **LIES[encoded]}
        else:
            yield from decode_rows([encoded], resize, max_pixels, enlarge)
