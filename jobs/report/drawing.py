"""Boxes and their names drawn on images, and images as data URLs."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageDraw, ImageFont

from jobs.report.box_names import Rectangle, place_names
from jobs.report.pictures import Pixels
from pipeline.storage.urls import printable

JPEG_QUALITY = 82
TEXT_SIGNS = 80  # greatest number of characters of a box's text
PADDING = 2  # pixels around a text
# A cutting shows at least this share of the image's shorter side, so that its place can be seen.
LEAST_CUT, CUT_RATIO = 0.6, 4 / 3
ROOM = 1.6  # how many times the size of its object a cutting has
_BASIC = ImageFont.Layout.BASIC  # the other layout engine fails on some texts


@dataclass(frozen=True)
class Box:
    """A box to draw, in pixels of the image as displayed."""

    corners: tuple[float, float, float, float]  # x_min, y_min, x_max, y_max
    text: str  # text beside the box; "" for none
    colour: str  # "#rrggbb", light enough for black text


def draw_boxes(
    pixels: Pixels, size: tuple[int, int], boxes: Sequence[Box], bold: bool = False
) -> Pixels:
    """Draw boxes on `pixels` (rows, columns, 3), and return the result.

    The boxes belong to an image of `size` (width, height). The first box lies on top. The text of a
    box stands where it covers neither small boxes nor another text, and is left out where there is
    no such place.
    """
    # This import takes a third of a second, and the reader processes do not need it.
    from matplotlib import get_data_path

    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    # Pages show images side by side at one height, so text scales with it; narrow images by width.
    file = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    signs = min(28, max(11, image.height // 24, image.width // 40))
    font = ImageFont.truetype(file, signs, layout_engine=_BASIC)
    line = max(1, round(image.height / (80 if bold else 160)))
    corners = [_scale_corners(box.corners, size, image.size) for box in boxes]
    for box, (left, top, right, low) in zip(reversed(boxes), reversed(corners), strict=True):
        draw.rectangle((left - 1, top - 1, right + 1, low + 1), outline="black")
        draw.rectangle((left, top, right, low), outline=box.colour, width=line)
    texts = [printable(box.text).replace("\n", " ")[:TEXT_SIGNS] for box in boxes]
    sizes = [
        (font.getlength(text) + 2 * PADDING, font.size + 2 * PADDING) if text else None
        for text in texts
    ]
    places = place_names(corners, sizes, image.size)
    for box, text, place in zip(boxes, texts, places, strict=True):
        if place is not None:
            draw.rectangle(place, fill=box.colour)
            middle = (place[1] + place[3]) / 2
            draw.text((place[0] + PADDING, middle), text, fill="black", font=font, anchor="lm")
    return np.asarray(image)


def _scale_corners(
    corners: tuple[float, float, float, float], size: tuple[int, int], drawn: tuple[int, int]
) -> Rectangle:
    """Scale the corners of a box to the drawn image; corners beyond it come to its border."""
    left, top, right, low = (
        min(max(corner * drawn[k % 2] / size[k % 2], 0.0), float(drawn[k % 2]))
        for k, corner in enumerate(corners)
    )
    return left, top, max(left, right), max(top, low)


def cut_around(
    pixels: Pixels, size: tuple[int, int], corners: tuple[float, float, float, float]
) -> Pixels:
    """Cut the surroundings of a box out of `pixels` (rows, columns, 3).

    The box belongs to an image of `size` (width, height).
    """
    rows, columns = pixels.shape[:2]
    left, top, right, low = _scale_corners(corners, size, (columns, rows))
    width = ROOM * max(right - left, CUT_RATIO * (low - top))
    width = max(width, LEAST_CUT * min(rows, columns) * CUT_RATIO)
    begin, end = _limit_span((left + right) / 2, width, columns)
    first, last = _limit_span((top + low) / 2, width / CUT_RATIO, rows)
    return pixels[first:last, begin:end]


def _limit_span(centre: float, length: float, limit: int) -> tuple[int, int]:
    """Return start and stop of a span within 0 to `limit`, as near to `centre` as possible."""
    whole = min(limit, round(length))
    start = min(max(0, round(centre - whole / 2)), limit - whole)
    return start, start + whole


def data_uri(pixels: Pixels) -> str:
    """Encode an image (rows, columns, 3) as a JPEG in a data URL, for `src` of an `img` element."""
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), JPEG_QUALITY, "RGB", "420")
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
