"""The pixels of the views of an image (tiling.py), one after the other."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch

from model.resample import resize_pixels
from pipeline.stages.bands import Bands
from pipeline.stages.pixels import Pixels
from pipeline.stages.tiling import View

BAND_ROWS = 64  # rows of an image that are read at once
FINER = 4  # times the size of the whole to which its cells are averaged before it is resized


def cut_views(pixels: Pixels, views: Sequence[View]) -> Pixels:
    """The views of an image (H, W, 3) uint8, each resized, as flat bytes."""
    whole, *tiles = views
    resized = _resized(pixels, whole)
    if not tiles:
        return resized
    content = np.empty(sum(view.bytes for view in views), np.uint8)
    content[: whole.bytes] = resized
    rest = content[whole.bytes :]
    for view in tiles:
        rest = _write(pixels, view, rest)
    return content


def read_views(bands: Bands, views: Sequence[View]) -> Pixels:
    """The same of an image that is read from top to bottom, a band at a time.

    Its tiles have the pixels that `cut_views` gives them. The whole is averaged in small cells
    before it is resized, so its pixels differ a little.
    """
    whole, *tiles = views
    content = np.empty(sum(view.bytes for view in views), np.uint8)
    rest = content[whole.bytes :]
    reduced = _Reduced(whole)
    window = np.empty((tiles[0].height, whole.width, 3), np.uint8)
    read = 0  # rows of the image
    for top, row in groupby(tiles, lambda tile: tile.top):
        bottom = top + len(window)
        if kept := max(0, read - top):
            window[:kept] = window[-kept:].copy()
        for start in range(read, bottom, BAND_ROWS):
            band = bands.read(start, min(BAND_ROWS, bottom - start))
            reduced.add(start, band)
            window[max(0, start - top) :][: len(band)] = band
        read = bottom
        for tile in row:
            rest = _write(window, replace(tile, top=0), rest)
    height, width = reduced.shape
    _write(reduced.pixels, replace(whole, height=height, width=width), content)
    return content


def _write(pixels: Pixels, view: View, into: Pixels) -> Pixels:
    """Write the resized pixels of a view to the start of `into`; return what is left of that."""
    into[: view.bytes] = _resized(pixels, view)
    return into[view.bytes :]


def _resized(pixels: Pixels, view: View) -> Pixels:
    """The resized pixels of a view of an image (H, W, 3), flat."""
    part = pixels[view.top :][: view.height, view.left :][:, : view.width]
    own = torch.from_numpy(np.ascontiguousarray(part))  # as an image of its own would be
    return resize_pixels(own, (view.rows, view.columns)).numpy().reshape(-1)


class _Reduced:
    """An image averaged in cells of about one size, as small as its whole view allows."""

    def __init__(self, whole: View):
        self.shape = min(whole.height, FINER * whole.rows), min(whole.width, FINER * whole.columns)
        self.tops, self.lefts = (
            np.arange(count + 1) * side // count
            for count, side in zip(self.shape, (whole.height, whole.width), strict=True)
        )
        self.pixels = np.empty((*self.shape, 3), np.uint8)  # the averages, rounded
        self._sums = np.zeros((self.shape[1], 3), np.uint32)  # of a row of cells that has begun

    def add(self, top: int, band: Pixels) -> None:
        """Add the rows of the image from `top` on, (h, W, 3). Bands come from top to bottom."""
        bottom = top + len(band)
        first = int(np.searchsorted(self.tops, top, "right")) - 1
        last = int(np.searchsorted(self.tops, bottom, "left"))
        for cell in range(first, last):
            rows = self.tops[cell : cell + 2]
            columns = band[max(0, rows[0] - top) : rows[1] - top].sum(0, dtype=np.uint32)
            self._sums += np.add.reduceat(columns, self.lefts[:-1], axis=0, dtype=np.uint32)
            if rows[1] <= bottom:
                counts = ((rows[1] - rows[0]) * np.diff(self.lefts))[:, None]
                self.pixels[cell] = (self._sums + counts // 2) // counts
                self._sums[:] = 0
