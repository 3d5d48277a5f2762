"""The views of a large image: the whole, then its tiles. decode.py writes what detect.py reads.

A row of PREPARED holds the views of its image one after the other. Where they lie is a function of
the size of the image as displayed, so that no row needs to say it.
"""

import math
from dataclasses import dataclass

from model.resize import MOST_ENLARGED, STRIDE, ResizeRule

DEFAULT_OVERLAP = 0.2
MOST_OVERLAP = 0.5
# Images with more pixels are not decoded at once (300 MB as RGB), but read in bands if they are
# tiled. The size is that of a 100-megapixel camera's image.
MAX_PIXELS = 100_000_000
MAX_TILED_PIXELS = 1_000_000_000
MOST_WHOLE_PIXELS = 5_000_000  # of the whole of such an image, beside its tiles
# Bytes of all views of an image, and of the band of it that is in memory. Beside them a decoder
# needs 0.9 GB for itself and twice the bytes of the file (0.5 GB), and it has 6.4 GB. An image of
# 500 megapixels in tiles of 800 has 2.4 GB of views.
MOST_BYTES = 9 << 29
MOST_TILES = 50_000  # of an image: 1,000 megapixels in tiles of 176, with an overlap of 0.2
_LESS = "give a larger --tile, or less --tile-overlap"


@dataclass(frozen=True)
class Tiling:
    """How images are tiled."""

    size: int  # pixels of both sides of a tile
    overlap: float = DEFAULT_OVERLAP  # the least share of a side that two neighbours have in common

    @property
    def step(self) -> int:
        """Pixels from one tile to the next."""
        return max(1, int(self.size * (1 - self.overlap)))

    def starts(self, side: int) -> list[int]:
        """Where the tiles start along a side of an image, in pixels. The last one ends with it."""
        last = max(0, side - self.size)
        return [*range(0, last, self.step), last]


@dataclass(frozen=True)
class View:
    """A part of an image, or all of it, and the size in which it is handed to the detector."""

    top: int
    left: int
    height: int
    width: int
    rows: int  # of the view as it is handed over
    columns: int

    @property
    def bytes(self) -> int:
        """The bytes of its pixels."""
        return 3 * self.rows * self.columns


def views(
    height: int, width: int, resize: ResizeRule, enlarge: bool, tiling: Tiling | None
) -> list[View]:
    """The views of an image of this displayed size: the whole, then its tiles row by row.

    An image that fits in a tile has no tiles. All tiles have one size. A tile is prepared as an
    image of its own size, but the detector always enlarges it, whatever `enlarge` says: tiles that
    are smaller than the model's size would take many times the bytes.
    """
    whole = View(0, 0, height, width, *_whole_size(height, width, resize, enlarge))
    if tiling is None or max(height, width) <= tiling.size:
        return [whole]
    size = min(height, tiling.size), min(width, tiling.size)
    prepared = resize.prepared_size(*size, enlarge=False)
    return [
        whole,
        *(
            View(top, left, *size, *prepared)
            for top in tiling.starts(height)
            for left in tiling.starts(width)
        ),
    ]


def why_too_many(
    height: int, width: int, resize: ResizeRule, enlarge: bool, tiling: Tiling
) -> str | None:
    """Why an image has too many views, or too large ones; None if its views may be made."""
    tiles = math.prod(-(-max(0, side - tiling.size) // tiling.step) + 1 for side in (height, width))
    if height * width > MAX_TILED_PIXELS:
        return f"{width} x {height} is more than {MAX_TILED_PIXELS} pixels"
    if tiles > MOST_TILES:
        return f"{width} x {height} has {tiles} tiles, more than {MOST_TILES}: {_LESS}"
    found = views(height, width, resize, enlarge, tiling)
    size = sum(view.bytes for view in found) + 3 * width * min(height, tiling.size)
    if size > MOST_BYTES:
        return f"the tiles of {width} x {height} take {size} bytes, more than {MOST_BYTES}: {_LESS}"
    return None


def _whole_size(height: int, width: int, resize: ResizeRule, enlarge: bool) -> tuple[int, int]:
    """The size of the whole image as it is handed over.

    Of an image that is read in bands it has MOST_WHOLE_PIXELS at most. Only detectors that take
    images as displayed would get more.
    """
    rows, columns = resize.prepared_size(height, width, enlarge)
    if height * width <= MAX_PIXELS or rows * columns <= MOST_WHOLE_PIXELS:
        return rows, columns
    scale = (MOST_WHOLE_PIXELS / (rows * columns)) ** 0.5
    return max(1, int(rows * scale)), max(1, int(columns * scale))


def smallest_tile(resize: ResizeRule) -> int:
    """The smallest side of a tile for a model, in pixels.

    The model sees a tile at its own size. A smaller tile would become more than MOST_ENLARGED times
    as large, which no detector enlarges.
    """
    return max(STRIDE, -(-resize.shorter // math.isqrt(MOST_ENLARGED)))
