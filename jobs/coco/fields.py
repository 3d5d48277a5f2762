"""Entries of COCO's lists as records, field by field.

Tools write the same thing in several ways, and every command takes them alike:

- An id of an image is a whole number or a text, and 5, 5.0, "5" and "5.0" are one id. It becomes a
  text.
- An id of a category is a whole number. This number, and all others, may be written as a text.
- A box is [x, y, width, height] in pixels: finite numbers, and no negative width or height.
- `iscrowd` is 0, 1, false or true; without it, or with null or "", the object is no crowd.
- `area` is a number, not negative; without it, or with null or "", it is that of the box.

All else is a WrongField.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from jobs.coco.records import Annotation, Box, Category, Image, Result

LARGEST_SIDE = 2**31 - 1  # of an image
LARGEST_COORDINATE = 1e9
LARGEST_ID = 2**63 - 1  # of a category: tables hold ids in 64 bits

Entry = dict[str, Any]
_ABSENT = (None, "")  # values of a field that some tools write where they have none
_WHOLE_FLOAT = re.compile(r"-?\d+\.0+")


class WrongField(Exception):
    """A field of an entry cannot be used."""

    def __init__(self, field: str, reason: str):
        super().__init__(reason)
        self.field = field


def shown(value: object) -> str:
    return repr(value)[:100]


def object_of(entry: object) -> Entry:
    if not isinstance(entry, dict):
        raise WrongField("", f"{shown(entry)} is not a JSON object")
    return entry


def category_of(entry: Entry) -> Category:
    name = _present(entry, "name")
    if not isinstance(name, str) or not name:
        raise WrongField("name", f"name {shown(name)} is not a text of one letter or more")
    return Category(_category_id(entry, "id"), name)


def image_of(entry: Entry, needed: Collection[str]) -> Image:
    key = _image_id(entry, "id")
    name = None if entry.get("file_name") in _ABSENT else _id_text(entry, "file_name")
    if name is None and "file_name" in needed:
        raise WrongField("file_name", "it has no file_name")
    width, height = _side(entry.get("width")), _side(entry.get("height"))
    if (width is None and "width" in needed) or (height is None and "height" in needed):
        size = f"{shown(entry.get('width'))} x {shown(entry.get('height'))}"
        raise WrongField("size", f"its size is {size}: give width and height in pixels")
    shard, image_id = entry.get("shard"), entry.get("image_id")
    row = (shard, image_id) if isinstance(shard, str) and isinstance(image_id, str) else None
    return Image(key, name, width, height, row)


def annotation_of(entry: Entry, number: int) -> Annotation:
    """`number` is its place in the file, from 1."""
    bbox = _bbox(entry)
    area = entry.get("area")
    has_area = area not in _ABSENT
    size = _number(area) if has_area else bbox[2] * bbox[3]
    if size is None or size < 0:
        raise WrongField("area", f"area {shown(area)} is not a number from 0 up")
    image_id, category_id = _image_id(entry, "image_id"), _category_id(entry, "category_id")
    own_id = "" if entry.get("id") is None else shown(entry["id"])
    is_crowd = _is_crowd(entry)
    return Annotation(image_id, category_id, bbox, size, is_crowd, has_area, number, own_id)


def result_of(
    entry: Entry, category_ids: Collection[int], category_names: Mapping[str, int]
) -> Result:
    """`category_names` has the ids of categories by their names, which some detectors write."""
    bbox = _bbox(entry)
    value = _present(entry, "score")
    score = _number(value)
    if score is None or not 0 <= score <= 1:
        raise WrongField("score", f"score {shown(value)} is not between 0 and 1")
    category_id = category_names.get(str(entry.get("category_id")))
    if category_id is None:
        category_id = _category_id(entry, "category_id", ", nor the name of a category")
    if category_id not in category_ids:
        reason = f"category_id {category_id} is of no category in --annotations"
        raise WrongField("category_id", reason)
    return Result(_image_id(entry, "image_id"), category_id, bbox, score)


def _present(entry: Entry, field: str) -> object:
    value: object = entry.get(field)
    if value is None:
        raise WrongField(field, f"it has no {field}")
    return value


def _image_id(entry: Entry, field: str) -> str:
    """A text, or a whole number as text; a text such as "5.0" is the number."""
    value = _id_text(entry, field)
    return value.partition(".")[0] if _WHOLE_FLOAT.fullmatch(value) else value


def _id_text(entry: Entry, field: str) -> str:
    """A text as it is, or a whole number as text."""
    value = _present(entry, field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int | str) or isinstance(value, bool) or value == "":
        raise WrongField(field, f"{field} {shown(value)} is neither a whole number nor a text")
    return str(value)


def _category_id(entry: Entry, field: str, other: str = "") -> int:
    """`other` is what the value is not either, for the error."""
    value = _present(entry, field)
    number = _whole_number(value)
    if number is None or abs(number) > LARGEST_ID:
        raise WrongField(field, f"{field} {shown(value)} is not a whole number of 64 bits{other}")
    return number


def _bbox(entry: Entry) -> Box:
    value = _present(entry, "bbox")
    numbers = [_number(side) for side in value] if isinstance(value, list) else []
    box = [number for number in numbers if number is not None]
    if len(numbers) == len(box) == 4:
        x, y, width, height = box
        largest = max(abs(x), abs(y), width, height)
        if min(width, height) >= 0 and largest <= LARGEST_COORDINATE:
            return x, y, width, height
    raise WrongField("bbox", f"bbox {shown(value)} is not [x, y, width, height] in pixels")


def _is_crowd(entry: Entry) -> bool:
    value = entry.get("iscrowd")
    if value in _ABSENT:
        return False
    number = float(value) if isinstance(value, bool) else _number(value)
    if number not in (0, 1):
        raise WrongField("iscrowd", f"iscrowd {shown(value)} is neither 0 nor 1")
    return number == 1


def _side(value: object) -> int | None:
    number = _whole_number(value)
    return number if number is not None and 1 <= number <= LARGEST_SIDE else None


def _whole_number(value: object) -> int | None:
    number = _number(value)
    if number is None or not number.is_integer():
        return None
    return value if isinstance(value, int) else int(number)  # a float holds 53 bits


def is_number(text: str) -> bool:
    """Whether a text is read as a number where a number is expected."""
    return _number(text) is not None


def _number(value: object) -> float | None:
    """A finite number, which may be written as a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
