"""decode: an encoded image becomes upright, resized RGB pixels. It runs in the preparer's child.

libjpeg-turbo decodes JPEGs, through simplejpeg, to the same pixels as Pillow. Pillow decodes all
other formats, and JPEGs that are unusual in any way. torch resizes in uint8 and computes the same
result as Pillow. Medians on one core: a JPEG of 640 x 480 that becomes 1066 x 800 takes 4.3 ms
instead of 9.0 ms, and one of 4000 x 3000 takes 36 ms instead of 189 ms. (Scaling the latter by half
in the DCT domain would save 10 ms of the 36 ms, but it would change pixels.)
"""

import codecs
import importlib
import io
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import AvifImagePlugin, Image, ImageOps

from model.jpeg import TURNED
from model.resize import ResizeRule
from pipeline.isolation.child import Row
from pipeline.schema import OK, TOO_MANY_PIXELS, TRUNCATED, UNDECODABLE
from pipeline.stages.bands import NotInBands, VipsBands, load_bands
from pipeline.stages.jpeg import MOST_SCANS, has_too_many_scans, is_plain
from pipeline.stages.metadata import copies_without_metadata
from pipeline.stages.opening import (
    ORIENTATION_TAG,
    NotReadable,
    open_image,
    orientation_of,
    orientation_undone_by_decoder,
)
from pipeline.stages.pixels import Pixels, rgb_pixels
from pipeline.stages.tiling import Tiling, View, views, why_too_many
from pipeline.stages.views import cut_views, read_views


def load_decoders() -> None:
    """Load all that decoding may load. After it the child opens no file."""
    torch.set_num_threads(1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    for encoding in ("ascii", "latin-1", "utf-8", "utf-16-le", "utf-16-be"):  # of texts in files
        codecs.lookup(encoding)
    Image.init()
    for module in ("ImageCms", "ImageColor", "ImageFilter", "ImagePalette"):  # CIELAB, and others
        importlib.import_module(f"PIL.{module}")
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    colours = Image.new("RGB", (64, 48))
    for name in {"JPEG", "PNG", "GIF", "TIFF", "WEBP", "JXL"} & set(Image.SAVE):
        _decode_once(colours, name, exif=exif.tobytes())
    numbers = np.geomspace(1e-3, 1e6, 64 * 48, dtype=np.float32).reshape(48, 64)
    _decode_once(Image.fromarray(numbers), "TIFF")  # NumPy loads modules for percentiles


def load_decoders_of_bands() -> None:
    """Load also what reads images in bands, for tiles."""
    load_decoders()
    load_bands()
    colours = Image.new("RGB", (64, 48))
    for name in ("JPEG", "TIFF"):
        _decode_once(colours, name, limit=1, tiling=Tiling(32))


def _decode_once(
    image: Image.Image,
    format: str,
    limit: int | None = None,
    tiling: Tiling | None = None,
    **options: Any,
) -> None:
    file = io.BytesIO()
    image.save(file, format, **options)
    limit = limit or image.width * image.height
    decode_row(file.getvalue(), ResizeRule(32, 64), max_pixels=limit, tiling=tiling)


class _TooManyPixels(Exception):
    """The header announces more pixels than the limit."""


def decode_rows(
    images: list[bytes],
    resize: ResizeRule,
    max_pixels: int,
    enlarge: bool = True,
    tiling: Tiling | None = None,
    leave_jpegs: bool = False,
) -> Iterator[Row]:
    """Yield one row per image: `status`, `error`, and the columns of PREPARED that are known.

    `max_pixels` is the largest width x height that is decoded at once. `enlarge` is that of
    `ResizeRule.prepared_size`. With `tiling` an image has the pixels of all of its views, and may
    have more than `max_pixels`. With `leave_jpegs` there are no pixels of JPEGs that a detector can
    decode.
    """
    for encoded in images:
        began = time.perf_counter()
        left = header_row(encoded, resize, max_pixels, tiling) if leave_jpegs else None
        yield {  # without a name, which would keep its pixels while the next image is decoded
            **(left or decode_row(encoded, resize, max_pixels, enlarge, tiling)),
            "prepare_seconds": time.perf_counter() - began,
        }


def header_row(
    encoded: bytes, resize: ResizeRule, max_pixels: int, tiling: Tiling | None
) -> Row | None:
    """The row of a JPEG that is left to the detector; None for an image that is decoded here.

    Decoded here are files that are no plain JPEG, those whose header fails, and images with tiles.
    So are images that become much larger: tables are bounded by their bytes, and would have too
    many of them.
    """
    if not is_plain(encoded) or has_too_many_scans(encoded):
        return None
    known: Row = {}
    try:
        with open_image(encoded, partial(_check_size, max_pixels=max_pixels, known=known)) as file:
            _check_size(*file.size, max_pixels=max_pixels, known=known)
            known["orientation"] = orientation_of(file)
    except Exception:  # decoding it tells the reason
        return None
    if known["orientation"] >= TURNED:
        known.update(width=known["height"], height=known["width"])
    size = known["height"], known["width"]
    if resize.is_much_enlarged(*size) or (tiling is not None and max(size) > tiling.size):
        return None
    return {**known, "status": OK}


def decode_row(
    encoded: bytes,
    resize: ResizeRule,
    max_pixels: int,
    enlarge: bool = True,
    tiling: Tiling | None = None,
) -> Row:
    """The row of one image. A failed image has no `pixels`. No error is raised."""
    known: Row = {}
    try:
        pixels, whole = _views(encoded, resize, max_pixels, enlarge, tiling, known)
    except _TooManyPixels as error:
        return {**known, "status": TOO_MANY_PIXELS, "error": str(error)}
    except NotReadable as error:
        return {**known, "status": UNDECODABLE, "error": str(error)}
    except MemoryError:
        return {**known, "status": UNDECODABLE, "error": "it takes more memory than an image may"}
    except Exception as error:  # decoders raise many types of errors; each becomes this image's row
        text = f"{type(error).__name__}: {error}"
        status = TRUNCATED if "truncated" in text.lower() else UNDECODABLE
        return {**known, "status": status, "error": text}
    size = {"rows": whole.rows, "columns": whole.columns}
    return {**known, "status": OK, "pixels": pixels.data, **size}


def _views(
    encoded: bytes,
    resize: ResizeRule,
    max_pixels: int,
    enlarge: bool,
    tiling: Tiling | None,
    known: Row,
) -> tuple[Pixels, View]:
    """The flat pixels of all views of an image, and the first view, which is the whole."""
    try:
        pixels = _decode(encoded, max_pixels, known)
    except _TooManyPixels as error:
        if tiling is None:
            raise
        found = _tiled_views(known["height"], known["width"], resize, enlarge, tiling)
        if len(found) == 1:
            raise _TooManyPixels(f"{error}, and fits in a tile: give a smaller --tile") from error
        try:
            bands = VipsBands(encoded)
        except NotInBands as reason:
            raise _TooManyPixels(f"{error}, and {reason}") from reason
        return read_views(bands, found), found[0]
    found = _tiled_views(pixels.shape[0], pixels.shape[1], resize, enlarge, tiling)
    return cut_views(pixels, found), found[0]


def _tiled_views(
    height: int, width: int, resize: ResizeRule, enlarge: bool, tiling: Tiling | None
) -> list[View]:
    """The views of an image. Raises _TooManyPixels where they take too much memory."""
    if tiling is not None:
        reason = why_too_many(height, width, resize, enlarge, tiling)
        if reason is not None:
            raise _TooManyPixels(reason)
    return views(height, width, resize, enlarge, tiling)


def decode_image(encoded: bytes, max_pixels: int) -> Pixels:
    """The image as displayed, (height, width, 3) uint8, as it is labelled. Raises any error."""
    return _decode(encoded, max_pixels, {})


def _decode(encoded: bytes, max_pixels: int, known: dict[str, Any]) -> Pixels:
    """The image as (rows, columns, 3) uint8. The size goes into `known` as soon as it is read.

    Where a damaged block of metadata stops the decoder, the image is decoded without it.
    """
    if has_too_many_scans(encoded):
        raise NotReadable(f"the JPEG has more than {MOST_SCANS} scans: store it anew")
    Image.MAX_IMAGE_PIXELS = None  # the limit below gives a failed row instead of a warning
    try:
        pixels = _upright_pixels(encoded, max_pixels, known)
    except (_TooManyPixels, MemoryError):
        raise
    except Exception as error:
        found = _decode_without_metadata(encoded, max_pixels, known)
        if found is None:
            raise error
        pixels = found
    height, width = pixels.shape[:2]
    known.update(width=width, height=height)
    return pixels


def _decode_without_metadata(
    encoded: bytes, max_pixels: int, known: dict[str, Any]
) -> Pixels | None:
    """The pixels of an image that cannot be decoded as it is; None if the metadata is intact."""
    for copy in copies_without_metadata(encoded):
        try:
            return _upright_pixels(copy, max_pixels, known)
        except (_TooManyPixels, MemoryError):
            raise
        except Exception:  # the first error, of the image as it is, is the one that is told
            continue
    return None


def _upright_pixels(encoded: bytes, max_pixels: int, known: dict[str, Any]) -> Pixels:
    """The pixels as displayed, (height, width, 3) uint8. `known` gets the size and orientation.

    Pillow turns the pixels of some formats by itself, and then reports no orientation any more.
    """
    check_size = partial(_check_size, max_pixels=max_pixels, known=known)
    with open_image(encoded, check_size) as file:
        check_size(*file.size)
        undone = orientation_undone_by_decoder(file, encoded)
        pixels = _pixels(file, encoded)
        left = orientation_of(file)  # only now: for that of a PNG, Pillow loads all pixels
    if left != 1:
        image = _set_orientation(Image.fromarray(pixels), left)
        pixels = np.array(ImageOps.exif_transpose(image))
    known["orientation"] = undone if left == 1 else left
    return pixels


def _check_size(width: int, height: int, max_pixels: int, known: dict[str, Any]) -> None:
    known.update(width=width, height=height, orientation=1)
    if width * height > max_pixels:
        raise _TooManyPixels(f"{width} x {height} is more than {max_pixels} pixels")


def _pixels(file: Image.Image, encoded: bytes) -> Pixels:
    """The pixels as (height, width, 3) uint8. An animation gives its first frame."""
    if file.format in ("JPEG", "MPO") and file.mode in ("RGB", "L"):
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(encoded, "RGB")
            return pixels
        except ValueError:
            pass  # simplejpeg raises at any warning; Pillow then decides about the image
    file.load()
    return rgb_pixels(file, encoded)


def _set_orientation(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[ORIENTATION_TAG] = orientation
    return image
