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
from functools import cache
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import AvifImagePlugin, Image, ImageOps, UnidentifiedImageError
from torch.nn import functional as F

from model.resize import ResizeRule
from pipeline.isolation.child import Row
from pipeline.schema import OK, TOO_MANY_PIXELS, TRUNCATED, UNDECODABLE

ORIENTATION_TAG = 0x0112

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def load_decoders() -> None:
    """Load all that decoding may load. After it the child opens no file and starts no thread."""
    torch.set_num_threads(1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    for encoding in ("ascii", "latin-1", "utf-8", "utf-16-le", "utf-16-be"):  # of texts in files
        codecs.lookup(encoding)
    Image.init()
    for module in ("ImageCms", "ImageColor", "ImageFilter", "ImagePalette"):  # CIELAB, and others
        importlib.import_module(f"PIL.{module}")
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    for name in {"JPEG", "PNG", "GIF", "TIFF", "WEBP"} & set(Image.SAVE):
        file = io.BytesIO()
        Image.new("RGB", (64, 48)).save(file, name, exif=exif)
        decode_row(file.getvalue(), ResizeRule(32, 64), max_pixels=64 * 48)


@cache
def _formats() -> list[str]:
    """The formats that Pillow reads by itself.

    EPS is not among them: for EPS Pillow would start Ghostscript, which runs the file's program.
    """
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


class _TooManyPixels(Exception):
    """The header announces more pixels than the limit."""


def decode_rows(images: list[bytes], resize: ResizeRule, max_pixels: int) -> Iterator[Row]:
    """Yield one row per image: `status`, `error`, and the columns of PREPARED that are known.

    `max_pixels` is the largest width x height that is decoded.
    """
    for encoded in images:
        began = time.perf_counter()
        row = decode_row(encoded, resize, max_pixels)
        yield {**row, "prepare_seconds": time.perf_counter() - began}


def decode_row(encoded: bytes, resize: ResizeRule, max_pixels: int) -> Row:
    """The row of one image. A failed image has no `pixels`. No error is raised."""
    known: Row = {}
    try:
        pixels = _decode(encoded, resize, max_pixels, known)
    except _TooManyPixels as error:
        return {**known, "status": TOO_MANY_PIXELS, "error": str(error)}
    except UnidentifiedImageError:
        return {**known, "status": UNDECODABLE, "error": "no known image format"}
    except MemoryError:
        return {**known, "status": UNDECODABLE, "error": "it takes more memory than an image may"}
    except Exception as error:  # decoders raise many types of errors; each becomes this image's row
        text = f"{type(error).__name__}: {error}"
        status = TRUNCATED if "truncated" in text.lower() else UNDECODABLE
        return {**known, "status": status, "error": text}
    rows, columns = pixels.shape[:2]
    content = pixels.reshape(-1).data
    return {**known, "status": OK, "pixels": content, "rows": rows, "columns": columns}


def _decode(encoded: bytes, resize: ResizeRule, max_pixels: int, known: dict[str, Any]) -> Pixels:
    """The image as (rows, columns, 3) uint8. The size goes into `known` as soon as it is read."""
    Image.MAX_IMAGE_PIXELS = None  # the limit below gives a failed row instead of a warning
    with Image.open(io.BytesIO(encoded), formats=_formats()) as file:
        width, height = file.size
        known.update(width=width, height=height, orientation=1)
        if width * height > max_pixels:
            raise _TooManyPixels(f"{width} x {height} is more than {max_pixels} pixels")
        orientation = file.getexif().get(ORIENTATION_TAG, 1)
        pixels = _pixels(file, encoded)
    if orientation in range(2, 9):
        image = _set_orientation(Image.fromarray(pixels), orientation)
        pixels = np.array(ImageOps.exif_transpose(image))
        known["orientation"] = orientation
    height, width = pixels.shape[:2]
    known.update(width=width, height=height)
    return _resize(pixels, *resize.target_size(height, width))


def _pixels(file: Image.Image, encoded: bytes) -> Pixels:
    """The pixels as (height, width, 3) uint8. An animation gives its first frame."""
    if file.format in ("JPEG", "MPO") and file.mode in ("RGB", "L"):
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(encoded, "RGB")
            return pixels
        except ValueError:
            pass  # simplejpeg raises at any warning; Pillow then decides about the image
    file.load()
    return np.array(_convert_to_rgb(file))


def _resize(pixels: Pixels, rows: int, columns: int) -> Pixels:
    """Resize with an antialiased bilinear filter, which covers all source pixels of a result."""
    if pixels.shape[:2] == (rows, columns):
        return pixels
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = F.interpolate(image, (rows, columns), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def _set_orientation(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[ORIENTATION_TAG] = orientation
    return image


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB. Alpha is dropped; 16 bits are scaled (not clipped) to 8 bits."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float32)
        peak = 65535.0 if image.mode != "F" else max(1.0, float(values.max(initial=0.0)))
        image = Image.fromarray((values.clip(0, peak) * (255.0 / peak)).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
