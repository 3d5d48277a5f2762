"""What documents in COCO's format hold, as the reader gives it: checked, and without outlines."""

from dataclasses import dataclass

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


@dataclass(frozen=True, slots=True)
class Category:
    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Image:
    """`file_name` and the sides are None where the file does not give them, or nothing usable."""

    id: str
    file_name: str | None
    width: int | None
    height: int | None


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object in an image."""

    image_id: str
    category_id: int
    bbox: Box
    area: float
    iscrowd: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """One detection."""

    image_id: str
    category_id: int
    bbox: Box
    score: float


@dataclass(frozen=True, slots=True)
class Annotations:
    """A whole annotation file."""

    images: dict[str, Image]  # by id, in the order of the file
    classes: dict[int, str]  # names by category id
    annotations: list[Annotation]
    left_out: int = 0  # annotations of images or categories that the file does not list
