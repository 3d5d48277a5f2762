"""The images of canaries: scenes that come with the package, or a user's own annotated images."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.coco.file_names import portable_name
from jobs.coco.reader import read_annotations
from jobs.coco.records import Annotations
from jobs.label.canaries.options import RENDERED
from jobs.output.canaries import CanaryImage, CanaryReference, Object
from model.resize import ResizeRule
from pipeline.schema import ENCODED, OK
from pipeline.stages.canaries import Canary
from pipeline.stages.prepare import Preparer
from pipeline.storage.errors import InputError
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.files import open_location, read_object
from pipeline.storage.urls import mask, printable

RENDERED_FILE = Path(__file__).parent / "scenes" / "annotations.json"
MOST_IMAGES, MOST_BYTES = 16, 16 << 20  # every detector computes them, again and again


def read_canaries(choice: str, labels: Sequence[str]) -> CanaryReference:
    """The canaries that `--canaries` names, for a model with these class names.

    Raises InputError for annotations or images that cannot be read, or without an object of a class
    of the model.
    """
    place = str(RENDERED_FILE) if choice == RENDERED else choice
    truth = read_annotations(place, needed=("file_name",))
    if len(truth.images) > MOST_IMAGES:
        raise InputError(
            f"--canaries {mask(choice)} has {len(truth.images)} images, which every detector would "
            f"compute again and again: give a handful, at most {MOST_IMAGES}"
        )
    if not any(one.label in labels for objects in _objects(truth).values() for one in objects):
        names = ", ".join(sorted(truth.classes.values())[:5])
        hint = f"; {RENDERED} is for shapes-tiny" if choice == RENDERED else ""
        raise InputError(
            f"--canaries {mask(choice)}: no object is of a class of the model (its classes: {names}"
            f"){hint}: give annotations with the model's names"
        )
    images = tuple(_read_images(place, truth))
    if (size := sum(len(image.encoded) for image in images)) > MOST_BYTES:
        raise InputError(
            f"--canaries {mask(choice)}: the images have {size >> 20} MiB: give at most "
            f"{MOST_BYTES >> 20} MiB"
        )
    return CanaryReference(RENDERED if choice == RENDERED else mask(choice), images)


def _objects(truth: Annotations) -> dict[str, tuple[Object, ...]]:
    """The objects of each image, by its id; crowds are left out."""
    found: dict[str, tuple[Object, ...]] = dict.fromkeys(truth.images, ())
    for one in truth.annotations:
        if not one.iscrowd:
            x, y, width, height = one.bbox
            box = (x, y, x + width, y + height)
            found[one.image_id] += (Object(truth.classes[one.category_id], box),)
    return found


def _read_images(place: str, truth: Annotations) -> Iterator[CanaryImage]:
    """Read the images in the folder of the annotation file."""
    fs, path = open_location(place, "canaries")
    folder, objects = path.rpartition("/")[0], _objects(truth)
    for image in truth.images.values():
        name = portable_name(image.file_name or "")
        if ".." in name.split("/"):
            raise InputError(
                f"--canaries {mask(place)}: the image {printable(name)[:100]} lies outside of the "
                "folder of the annotations: canaries are copied into OUTPUT, so put it there"
            )
        with explain_errors("canaries", f"{place.rpartition('/')[0]}/{name}"):
            encoded = read_object(fs, f"{folder}/{name}", MOST_BYTES + 1)
        yield CanaryImage(name, encoded, objects[image.id])


def digest_of(canaries: CanaryReference) -> str:
    """Differs where images or objects differ."""
    digest = hashlib.sha256()
    for image in canaries.images:
        digest.update(repr((image.name, image.objects, len(image.encoded))).encode())
        digest.update(image.encoded)
    return digest.hexdigest()[:16]


def prepare_canaries(
    canaries: CanaryReference, resize: ResizeRule, enlarge: bool
) -> tuple[Canary, ...]:
    """Decode and resize the images, as the dataflow does. Raises InputError if one cannot be."""
    rows = [
        {"image_id": image.name, "shard": "canaries", "index_in_shard": number, "status": OK}
        | {"encoded": image.encoded}
        for number, image in enumerate(canaries.images)
    ]
    encoded = pa.Table.from_pylist(rows, schema=ENCODED)
    prepared: list[Canary] = []
    for table in Preparer(resize, enlarge=enlarge)(encoded):
        for row in table.to_pylist():
            if row["status"] != OK:
                raise InputError(f"the canary {row['image_id']}: {row['error']}")
            pixels = np.frombuffer(row["pixels"], np.uint8).reshape(row["rows"], row["columns"], 3)
            prepared.append(Canary(pixels, (row["height"], row["width"])))
    return tuple(prepared)
