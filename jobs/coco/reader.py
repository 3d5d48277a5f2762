"""The reader of COCO's format for all commands: annotation files, and results files.

An annotation file is a JSON object with the lists `images`, `categories` and `annotations`; a
results file is a JSON list of detections, as detectors write it for pycocotools. Files reach
gigabytes, nearly all of it outlines of objects, so an entry is read at a time, and outlines are not
kept. What is accepted stands in `fields`; anything else is one InputError that names the file, the
entry, its ids and the field.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from fsspec.implementations.local import LocalFileSystem

from jobs.coco.document import Document
from jobs.coco.fields import Entry, WrongField, annotation_of, category_of, image_of, result_of
from jobs.coco.records import Annotation, Annotations, Category, Image, Result, Unlisted
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.files import InputError, copy_to_file, open_location
from pipeline.storage.urls import mask

MOST_LABELS = 100_000
T = TypeVar("T")


@contextmanager
def local_file(url: str, what: str) -> Iterator[Path]:
    """The file at a path or URL as a local one; a copy of a remote file is deleted afterwards."""
    fs, path = open_location(url, what)
    if isinstance(fs, LocalFileSystem):
        with explain_errors(what, url):
            open(path, "rb").close()
        yield Path(path)
        return
    with tempfile.NamedTemporaryFile(prefix="detr-batch-") as copy:
        with explain_errors(what, url):
            copy_to_file(fs, path, cast(BinaryIO, copy))
        yield Path(copy.name)


def read_annotations(location: str, needed: Collection[str] = ()) -> Annotations:
    """The annotation file at a path or URL; each image must have the fields that are `needed`.

    InputError where the file is missing, or not what it should be.
    """
    with local_file(location, "annotations") as path:
        file = AnnotationFile(path, f"annotations {mask(location)}")
        classes = {category.id: category.name for category in file.categories()}
        images: dict[str, Image] = {}
        for image in file.images(needed):
            if image.id in images:
                raise InputError(f"{file.name}: two images have the id {image.id}")
            images[image.id] = image
        listed: list[Annotation] = []
        of_images, of_categories = Unlisted(), Unlisted()
        for annotation in file.annotations():
            if annotation.image_id not in images:
                of_images = _with_one_more(of_images, annotation)
            elif annotation.category_id not in classes:
                of_categories = _with_one_more(of_categories, annotation)
            else:
                listed.append(annotation)
    return Annotations(images, classes, listed, of_images, of_categories)


def _with_one_more(unlisted: Unlisted, annotation: Annotation) -> Unlisted:
    return Unlisted(unlisted.count + 1, unlisted.first or annotation.name)


def label_names(classes: Mapping[int, str], source: str) -> tuple[str, ...]:
    """Names by category id, "" in the holes.

    InputError, which names the file as `source`, for an id out of range.
    """
    for key, name in classes.items():
        if not 0 <= key < MOST_LABELS:
            raise InputError(
                f"{source}: the category {name!r} has the id {key}: give numbers from 0 to "
                f"{MOST_LABELS - 1}"
            )
    return tuple(classes.get(key, "") for key in range(max(classes) + 1))


class AnnotationFile:
    """A local annotation file, read list by list.

    Every method passes over the whole file, and raises InputError at the first entry that is wrong.
    """

    def __init__(self, path: Path, name: str):
        """`name` is what errors call the file."""
        self.name = name
        self._document = Document(path, name)
        start = self._document.first_byte()
        if start != b"{":
            hint = ". It is a list, as detections are" if start == b"[" else ""
            raise self._document.refusal(
                f"{name} is not an annotation file in COCO's format, which is a JSON object with "
                f"the lists `images`, `categories` and `annotations`{hint}"
            )

    def categories(self) -> list[Category]:
        """At least one category; ids are unique."""
        known: dict[int, Category] = {}

        def convert(entry: Entry) -> Category:
            category = category_of(entry)
            if category.id in known:
                raise WrongField("id", f"an earlier category has the id {category.id} too")
            known[category.id] = category
            return category

        return list(self._listed("categories", convert))

    def images(self, needed: Collection[str] = ()) -> Iterator[Image]:
        """At least one image, each with the fields that are `needed`: file_name, width, height.

        Ids may repeat: millions of images are compared by the caller, in memory or on disk.
        """
        return self._listed("images", partial(image_of, needed=needed))

    def annotations(self) -> Iterator[Annotation]:
        """All annotations, also those of images and categories that the file does not list."""
        numbers = count(1)

        def convert(entry: Entry) -> Annotation:
            return annotation_of(entry, next(numbers))

        return self._listed("annotations", convert, may_be_empty=True)

    def _listed(
        self, list_name: str, convert: Callable[[Entry], T], may_be_empty: bool = False
    ) -> Iterator[T]:
        is_empty = True
        for record in self._document.records(f"{list_name}.item", convert):
            is_empty = False
            yield record
        if not is_empty:
            return
        if not self._document.has_list(list_name):
            raise InputError(f"{self.name} has no list `{list_name}`")
        if not may_be_empty:
            raise InputError(f"{self.name} has no {list_name}: its list `{list_name}` is empty")


def read_results(
    path: Path,
    name: str,
    category_ids: Collection[int],
    category_names: Mapping[str, int] | None = None,
) -> Iterator[Result]:
    """The detections of a local results file, which errors call `name`.

    An entry may give the name of its category in place of the id; `category_names` has the ids.

    InputError for the first that is wrong, or of none of the categories.
    """
    document = Document(path, name)
    start = document.first_byte()
    if start != b"[":
        hint = ". It is an object, as annotation files are: `detr-batch evaluate` takes those"
        raise document.refusal(
            f"{name} is not a JSON list: give a file of "
            '[{"image_id": ..., "category_id": ..., "bbox": [x, y, width, height], "score": ...}, '
            f"...]{hint if start == b'{' else ''}"
        )
    names = category_names or {}
    parse = partial(result_of, category_ids=category_ids, category_names=names)
    return document.records("item", parse)
