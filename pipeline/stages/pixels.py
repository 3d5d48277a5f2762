"""Any image of Pillow becomes RGB with 8 bits.

Images of 8 bits stay as they are, without their alpha. Others (16 and 32 bits, floating point) are
scaled. The rule depends on the image alone:

1. No-data is left out, and becomes black: NaN, infinite and absurd values (from 1e15 on), the value
   of GDAL's tag, usual values such as -9999 and -32768 where they are the smallest, a negative
   value that is the only negative one, and the largest value of an integer type if all others are
   16 times smaller.
2. The tags of TIFF for the smallest and largest value are believed, if all values lie between and
   fill at least a sixteenth of the range.
3. Integers that are not negative have 8, 10, 12, 14 or 16 bits: the fewest that hold them all.
   So have floating-point numbers that are whole, up to 255.
4. Floating-point numbers from 0 to 1, the largest of which is a sixteenth or more, go from 0 to 1.
5. Of other values, the range between the percentiles 0.5 and 99.5 is shown.

Raises ValueError if nothing but no-data is left, or if Pillow has lost the bits that count.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImagePalette

from pipeline.stages.tiff import NO_DATA

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Values = np.ndarray[Any, Any]

INTEGER_PEAKS = (255, 1023, 4095, 16383, 65535)
USUAL_NO_DATA = (-9999, -99999, -999999, -32767, -32768, -(2**31) + 1, -(2**31))
ABSURD = 1e15
DARK = 1 / 16  # of a range: values that fill less of it are of a smaller range
SAMPLE = 1 << 20  # number of values of which percentiles are computed
SLAB = 1 << 22  # number of values that are scaled at once

_BITS, _COMPRESSION, _PHOTOMETRIC, _COLOR_MAP, _SAMPLE_FORMAT = 258, 259, 262, 320, 339
_RANGES = ((340, 341), (280, 281))  # tags of the smallest and the largest value


@dataclass(frozen=True)
class Announced:
    """What a TIFF says about its values."""

    no_data: float | None = None
    ranges: tuple[tuple[float, float], ...] = ()
    white_is_zero: bool = False


def rgb_pixels(image: Image.Image, encoded: bytes) -> Pixels:
    """The pixels of a loaded image as (height, width, 3) uint8."""
    tags: dict[int, Any] = dict(getattr(image, "tag_v2", {}))
    if _has_numbers(image.mode) or (image.mode == "L" and tags.get(_SAMPLE_FORMAT) == (2,)):
        scaled = _scale(_values(image, tags), _announced(image.mode, tags))
        return np.repeat(scaled[:, :, None], 3, axis=2)
    if image.mode in ("P", "PA") and _COLOR_MAP in tags:
        _mend_palette(image, tags[_COLOR_MAP])
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "La":
        image = image.convert("LA")
    pixels = np.array(image.convert("RGB"))
    if _has_deep_colors(image, encoded, tags) and pixels.max(initial=0) < 256 * DARK:
        raise ValueError(
            "its colours have 16 bits and use the lower 12 at most, of which Pillow drops 8: "
            "convert it to 8 bits"
        )
    return pixels


def _has_deep_colors(image: Image.Image, encoded: bytes, tags: dict[int, Any]) -> bool:
    """Whether colours were stored with 16 bits, of which Pillow keeps the upper 8."""
    if image.format == "PNG":
        depth, kind = encoded[24:26]  # of the IHDR, the first chunk
        return depth == 16 and kind in (2, 6)
    return image.format == "TIFF" and max(tags.get(_BITS, (8,))) == 16


def _has_numbers(mode: str) -> bool:
    return mode.startswith("I;16") or mode in ("I", "F")


def _values(image: Image.Image, tags: dict[int, Any]) -> Values:
    """The values of an image of one band, with their own type."""
    values: Values = np.asarray(image)
    if image.mode == "L":
        return values.view(np.int8)
    bits, kind = tags.get(_BITS, (0,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0]
    if bits == 32 and kind == 1 and image.mode == "I":
        return values.view(np.uint32)
    return values


def _announced(mode: str, tags: dict[int, Any]) -> Announced:
    pairs = [(_number(tags.get(low)), _number(tags.get(high))) for low, high in _RANGES]
    ranges = tuple((low or 0.0, high) for low, high in pairs if high is not None)
    # Pillow turns the values of 8 bits and less itself.
    inverted = tags.get(_PHOTOMETRIC) == 0 and mode != "L"
    return Announced(_number(tags.get(NO_DATA)), ranges, inverted)


def _number(value: Any) -> float | None:
    """The number of a tag: of a text, or the same for all bands; None if it is none."""
    if isinstance(value, tuple):
        value = value[0] if len(value) == 1 else None
    try:
        return None if value is None else float(str(value).strip("\0 "))
    except ValueError:
        return None


def _scale(values: Values, announced: Announced) -> Pixels:
    """Scale values of any type to 8 bits by the rule above."""
    valid = _valid(values, announced.no_data)
    shown = values if valid is None else values[valid]
    if shown.size == 0:
        raise ValueError("all of its values are NaN, infinite, no-data, or 1e15 and more")
    low, high = _range(shown, announced)
    rounded = 0.0 if (low, high) == (0, 65535) else 0.5
    result = np.empty(values.shape, np.uint8)
    rows = max(1, SLAB // max(1, values.shape[1]))
    single = values.dtype.itemsize <= 2 or values.dtype.kind == "f"
    exact: Any = np.float32 if single else np.float64
    for start in range(0, len(values), rows):
        part = slice(start, start + rows)
        with np.errstate(all="ignore"):  # no-data is replaced below
            scaled = (values[part].astype(exact) - exact(low)) * exact(255.0 / (high - low))
            result[part] = np.nan_to_num(scaled + exact(rounded)).clip(0, 255).astype(np.uint8)
    if announced.white_is_zero:
        result = 255 - result
    if valid is not None:
        result[~valid] = 0
    return result


def _valid(values: Values, no_data: float | None) -> Values | None:
    """Which values are no no-data; None if all are."""
    valid = np.ones(values.shape, bool)
    if values.dtype.kind == "f":
        valid &= np.abs(values) < ABSURD  # false for NaN
        if no_data is not None and np.isfinite(no_data):
            valid &= np.abs(values - values.dtype.type(no_data)) > 1e-6 * abs(no_data)
    elif no_data is not None:
        valid &= values != no_data
    negative = values[valid & (values < 0)]
    if negative.size:
        lowest = negative.min()
        others = valid & (values != lowest)
        alone = lowest == negative.max() or lowest in USUAL_NO_DATA
        if alone and others.any():
            valid = others
    if values.dtype.kind != "f" and values.dtype.itemsize > 1:
        narrow = values.dtype.itemsize == 2 or values.max() <= 65535
        largest = 65535 if narrow else np.iinfo(values.dtype).max
        others = valid & (values != largest)
        if others.any() and values[others].max() <= largest * DARK:
            valid = others
    return None if valid.all() else valid


def _range(shown: Values, announced: Announced) -> tuple[float, float]:
    """The values that become 0 and 255."""
    least, most = float(shown.min()), float(shown.max())
    for low, high in announced.ranges:
        if low <= least and most <= high and most - low >= (high - low) * DARK > 0:
            return low, high
    whole = shown.dtype.kind != "f" or (most <= 255 and bool((shown == np.floor(shown)).all()))
    if least >= 0 and whole and most > 1 and most <= INTEGER_PEAKS[-1]:
        return 0.0, float(next(peak for peak in INTEGER_PEAKS if most <= peak))
    if shown.dtype.kind != "f" and least >= 0 and most <= 1:
        return 0.0, 255.0
    if least >= 0 and DARK <= most <= 1:
        return 0.0, 1.0
    sample = shown.reshape(-1)[:: max(1, shown.size // SAMPLE)].astype(np.float64)
    low, high = (float(value) for value in np.percentile(sample, (0.5, 99.5)))
    if low < high:
        return low, high
    return (least, most) if least < most else (least - 1.0, least + 1.0)


def _mend_palette(image: Image.Image, colors: tuple[int, ...]) -> None:
    """Take the colours of a TIFF as 8 bits where none has more. Pillow takes them as 16 bits."""
    if max(colors, default=0) < 256:
        palette = ImagePalette.raw("RGB;L", bytes(colors))
        image.putpalette(palette.getdata()[1], palette.getdata()[0])
