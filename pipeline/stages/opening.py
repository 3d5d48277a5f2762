"""Open an encoded image with Pillow, and tell its orientation."""

import importlib
import io
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from pipeline.formats.image_names import HEAD_BYTES, looks_like_image, needs_package, pillow_formats
from pipeline.stages import jxl, tiff

ORIENTATION_TAG = 0x0112
TURNED_SIDEWAYS = (5, 6, 7, 8)  # orientations by which height and width are exchanged
CheckSize = Callable[[int, int], None]  # raises if an image of this width and height is too large

_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _SUBSAMPLING = 258, 259, 262, 284, 530
_YCBCR = 6
_NATIVE = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}  # modes of Pillow's decoder

# Boxes of HEIF that turn the image by quarters to the left, and then mirror it.
_HEIF = (b"irot", b"imir")
_HEIF_ORIENTATIONS = {None: (1, 8, 3, 6), 0: (4, 5, 2, 7), 1: (2, 7, 4, 5)}  # of mirror and turns

_RAW = (
    "the file shows a small preview, and its full image is one of a raw photo, which is not read: "
    "convert it to JPEG or TIFF with a raw developer"
)


class NotReadable(ValueError):
    """No decoder here reads the image; the text says why."""


@cache
def optional_formats() -> tuple[str, ...]:
    """Register the formats of optional packages with Pillow, on one thread; return their names."""
    formats = []
    if needs_package("a.heic") is None:
        heif = importlib.import_module("pillow_heif")
        heif.register_heif_opener(
            decode_threads=0, thumbnails=False, depth_images=False, aux_images=False
        )
        formats.append("HEIF")
    if needs_package("a.jxl") is None:
        plugin: Any = importlib.import_module("pillow_jxl.JpegXLImagePlugin")
        plugin.DECODE_THREADS = 0
        formats.append("JXL")
    return tuple(formats)


def open_image(encoded: bytes, check_size: CheckSize) -> Image.Image:
    """The image of Pillow, not yet loaded. A file with several images gives its main one.

    `check_size` is called before any pixel is decoded. Raises NotReadable with the reason if no
    format reads the file, or if its main image cannot be read but only a preview of it.
    """
    header = jxl.header(encoded)
    if header is not None:
        check_size(*header[:2])
    try:
        file = Image.open(io.BytesIO(encoded), formats=_formats())
    except UnidentifiedImageError:
        raise NotReadable(_why_unidentified(encoded)) from None
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        check_size(*file.size)
        image = _mend_reading(*_full_image(file, encoded))
        if image is not file and tiff.ORIENTATION not in image.tag_v2:  # that of the preview holds
            image.getexif()[ORIENTATION_TAG] = file.tag_v2.get(tiff.ORIENTATION, 1)
        return image
    return file


def displayed_size(path: Path) -> tuple[int, int]:
    """Columns and rows of an image file as displayed.

    Only a TIFF is read whole. Raises what Pillow raises, and NotReadable as `open_image`.
    """
    with Image.open(path, formats=_formats()) as file:
        if isinstance(file, TiffImagePlugin.TiffImageFile):  # its size is that of the turned image
            return open_image(path.read_bytes(), lambda *_: None).size
        columns, rows = file.size
        if file.format == "HEIF" or _is_jpeg_xl(file):
            return columns, rows
        exif = Image.Image.getexif(file)  # that of PNG files would decode the image
        return (rows, columns) if exif.get(ORIENTATION_TAG) in TURNED_SIDEWAYS else (columns, rows)


def _formats() -> list[str]:
    return [*pillow_formats(), *optional_formats()]


def _why_unidentified(encoded: bytes) -> str:
    """The reason that Pillow found for refusing a file, with the name of its format."""
    head = encoded[:HEAD_BYTES]
    if not looks_like_image(head):
        return "no known image format"
    for name in _formats():
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(head) is True:
            try:
                factory(io.BytesIO(encoded), "")
            except Exception as error:  # Pillow's first words are the same for all formats
                reason = "" if "not identified by" in str(error) else f" ({error})"
                return f"no known image format, though it begins like {name}{reason}"
    for suffix in (".heic", ".jxl"):
        missing = needs_package(f"a{suffix}")
        if missing and (jxl.header(encoded) is not None) == (suffix == ".jxl"):
            return f"no known image format, without a package for {missing}"
    return "no known image format"


def _full_image(
    file: TiffImagePlugin.TiffImageFile, encoded: bytes
) -> tuple[TiffImagePlugin.TiffImageFile, bytes]:
    """The image of which a TIFF's first image is a preview, and a TIFF that begins with it.

    If the first image is none, both are as they were.
    """
    if not tiff.is_preview(file):
        return file, encoded
    for copy in tiff.other_directories(file, encoded):
        with suppress(UnidentifiedImageError):
            other = _open_tiff(copy)
            if not tiff.is_preview(other):
                return other, copy
    raise NotReadable(_RAW)


def _open_tiff(encoded: bytes) -> TiffImagePlugin.TiffImageFile:
    file = Image.open(io.BytesIO(encoded), formats=["TIFF"])
    assert isinstance(file, TiffImagePlugin.TiffImageFile)
    return file


def _mend_reading(
    file: TiffImagePlugin.TiffImageFile, encoded: bytes
) -> TiffImagePlugin.TiffImageFile:
    """The same image, read in another way where Pillow (13.0) would read other pixels.

    Of 16 bits in planes without compression, Pillow takes each byte for a pixel, and it passes over
    the subsampling of YCbCr. libtiff reads both well. After libtiff has decompressed values of big
    endian, Pillow turns their bytes again.
    """
    tags = file.tag_v2
    if tags.get(_COMPRESSION, 1) != 1:
        file.tile = [tile._replace(args=_in_native_order(tile.args)) for tile in file.tile]
        return file
    in_planes = tags.get(_PLANES) == 2 and max(tags.get(_BITS, (1,))) > 8
    subsampled = tags.get(_PHOTOMETRIC) == _YCBCR and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1)
    if not (in_planes or subsampled):
        return file
    TiffImagePlugin.READ_LIBTIFF = True
    try:
        return _open_tiff(encoded)
    finally:
        TiffImagePlugin.READ_LIBTIFF = False


def _in_native_order(arguments: Any) -> Any:
    """The arguments of Pillow's decoder for values that libtiff has turned to native order."""
    if not isinstance(arguments, tuple) or arguments[0] not in _NATIVE:
        return arguments
    return (_NATIVE[arguments[0]], *arguments[1:])


def orientation_undone_by_decoder(file: Image.Image, encoded: bytes) -> int:
    """The orientation (1 to 8) that loading the file's pixels undoes; 1 if it undoes none.

    Of HEIF it is that of the main image where all images in the file are turned alike.
    """
    if file.format == "TIFF":
        return orientation_of(file)
    if file.format == "HEIF":
        turn, mirror = (re.search(rb"\0\0\0\x09" + name + rb"(.)", encoded, re.S) for name in _HEIF)
        turns = turn[1][0] & 3 if turn else 0
        return _HEIF_ORIENTATIONS[mirror[1][0] & 1 if mirror else None][turns]
    header = jxl.header(encoded) if _is_jpeg_xl(file) else None
    return header[2] if header else 1


def orientation_of(file: Image.Image) -> int:
    """The orientation (1 to 8) that is still to be undone; 1 if it is unknown or damaged.

    The coded image says it in HEIF and JPEG XL, and by their standards EXIF says nothing beyond it.
    """
    if file.format == "HEIF" or _is_jpeg_xl(file):
        return 1
    try:
        value: Any = file.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF raises errors of many types, and must not cost the pixels
        return 1
    return int(value) if value in range(2, 9) else 1


def _is_jpeg_xl(file: Image.Image) -> bool:
    """Whether a file is JPEG XL, and not a JPEG that is packed as one: that keeps its EXIF."""
    return file.format == "JXL" and not getattr(file, "jpeg", False)
