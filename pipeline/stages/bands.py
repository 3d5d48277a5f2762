"""JPEG and TIFF files that are read in bands, as their images are too large to be decoded at once.

libvips reads them, by the package pyvips, to the pixels that Pillow reads. What it would read to
others, or not from top to bottom, is refused.
"""

import io
import os
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from PIL import Image, TiffImagePlugin

from pipeline.stages import tiff
from pipeline.stages.opening import open_image, orientation_of, orientation_undone_by_decoder
from pipeline.stages.pixels import Pixels

PACKAGE = "pyvips"
_OTHERS = "only RGB and grey of 8 bits are read in bands: convert it"
INSTALL = "the package that reads it in bands is missing: pip install '.[large]'"

_COMPRESSION, _PHOTOMETRIC, _PLANES, _EXTRA, _SAMPLE_FORMAT = 259, 262, 284, 338, 339
_READ_ALIKE = {1, 5, 7, 8, 32773, 32946}  # none, LZW, JPEG, two of Deflate, PackBits
_BANDS = {"L": 1, "RGB": 3, "RGBA": 4, "RGBX": 4}  # of the modes that are read
_GREY, _RGB, _YCBCR = 1, 2, 6  # of _PHOTOMETRIC
_JPEG = 7  # of _COMPRESSION
_PREMULTIPLIED = 1  # of _EXTRA: Pillow divides the colours by this alpha


class NotInBands(ValueError):
    """An image cannot be read in bands; the text says why."""


class Bands(Protocol):
    """An image that is read from top to bottom."""

    def read(self, top: int, rows: int) -> Pixels:
        """The pixels of the next rows, (rows, W, 3)."""


def load_bands() -> None:
    """Load libvips, if it is installed, with no cache and no further threads."""
    if find_spec(PACKAGE) is None:
        return
    os.environ["VIPS_CONCURRENCY"] = "1"
    import pyvips

    pyvips.cache_set_max(0)
    pyvips.block_untrusted_set(True)


class VipsBands:
    """The bands of an encoded image. Raises NotInBands where its pixels would not be Pillow's."""

    def __init__(self, encoded: bytes):
        with open_image(encoded, lambda *size: None) as file:
            if reason := _why_not(file, encoded):
                raise NotInBands(reason)
            self.width, mode, format = file.width, file.mode, file.format
        if find_spec(PACKAGE) is None:
            raise NotInBands(INSTALL)
        load_bands()
        import pyvips

        loader = "tiffload_buffer" if format == "TIFF" else "jpegload_buffer"
        image: Any = getattr(pyvips.Image, loader)(encoded, access="sequential", fail_on="error")
        found = image.format, image.bands, image.width, image.height
        if found != ("uchar", _BANDS[mode], *file.size):
            raise NotInBands(f"{_OTHERS} (libvips: {found[1]} bands of {found[0]})")
        self._region = pyvips.Region.new(image)

    def read(self, top: int, rows: int) -> Pixels:
        """The pixels of the next rows. Raises pyvips.Error if they are damaged or missing."""
        band: Pixels = np.frombuffer(self._region.fetch(0, top, self.width, rows), np.uint8)
        band = band.reshape(rows, self.width, -1)
        return np.repeat(band, 3, axis=2) if band.shape[2] < 3 else band[:, :, :3]


def _why_not(file: Image.Image, encoded: bytes) -> str | None:
    """Why a file that Pillow opened cannot be read in bands to the same pixels; None if it can."""
    if file.format not in ("JPEG", "MPO", "TIFF"):
        return f"of {file.format} files no bands are read: convert it to JPEG or TIFF"
    if file.mode not in _BANDS:
        return f"{_OTHERS} (mode {file.mode})"
    if max(orientation_undone_by_decoder(file, encoded), orientation_of(file)) != 1:
        return "an image that is to be turned is not read in bands: turn its pixels"
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        return _why_no_tiff(file, encoded)
    return None


def _why_no_tiff(file: TiffImagePlugin.TiffImageFile, encoded: bytes) -> str | None:
    tags = file.tag_v2
    first = Image.open(io.BytesIO(encoded), formats=["TIFF"])
    if isinstance(first, TiffImagePlugin.TiffImageFile) and tiff.is_preview(first):
        return "its first image is a preview: save the image alone"
    compression, kind = tags.get(_COMPRESSION, 1), tags.get(_PHOTOMETRIC)
    if compression not in _READ_ALIKE:
        return f"its compression, number {compression}, is not read in bands: use Deflate or JPEG"
    is_plain = kind == (_GREY if file.mode == "L" else _RGB)
    is_plain |= kind == _YCBCR and compression == _JPEG
    is_plain &= tags.get(_PLANES, 1) == 1 and set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
    if not is_plain or _PREMULTIPLIED in tags.get(_EXTRA, ()):
        return f"{_OTHERS} (photometric interpretation {kind})"
    return None
