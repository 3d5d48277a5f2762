"""What documents in COCO's format hold, as the reader gives it: checked, and without outlines."""

from dataclasses import dataclass, field

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
    row: tuple[str, str] | None = None  # shard and image_id, as `export` writes them


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object in an image."""

    image_id: str
    category_id: int
    bbox: Box
    area: float  # that of the box where the file does not give it
    iscrowd: bool = False
    has_area: bool = field(default=True, compare=False)
    number: int = field(default=0, compare=False)  # from 1, in the order of the file
    id: str = field(default="", compare=False)  # as the file gives it, for errors

    @property
    def name(self) -> str:
        """What errors call it: `annotation 12 (id 907, image_id 10, category_id 3)`."""
        own = f"id {self.id}, " if self.id else ""
        ids = f"image_id {self.image_id}, category_id {self.category_id}"
        return f"annotation {self.number} ({own}{ids})"


@dataclass(frozen=True, slots=True)
class Result:
    """One detection."""

    image_id: str
    category_id: int
    bbox: Box
    score: float


@dataclass(frozen=True, slots=True)
class Unlisted:
    """Annotations of images, or of categories, that the file does not list."""

    count: int = 0
    first: str = ""  # the name of the first


@dataclass(frozen=True, slots=True)
class Annotations:
    """A whole annotation file."""

    images: dict[str, Image]  # by id, in the order of the file
    classes: dict[int, str]  # names by category id
    annotations: list[Annotation]
    # Annotations that are left out of the list; one that lacks both counts for the image.
    of_unlisted_images: Unlisted = Unlisted()
    of_unlisted_categories: Unlisted = Unlisted()

    @property
    def left_out(self) -> int:
        return self.of_unlisted_images.count + self.of_unlisted_categories.count
