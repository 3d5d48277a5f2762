"""Label Studio: one JSON list of tasks, with the boxes as predictions to correct."""

import json
import re
from typing import Any, TextIO
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from jobs.exports import voc
from jobs.exports.names import PLAIN, below
from jobs.exports.reader import Box, LabelledImage, Labels
from pipeline.storage.urls import mask, printable

DECIMALS = 6  # decimals of percents: a hundredth of a pixel in images a million pixels wide
# What Label Studio can show: the web, files of its own server, and the stores that it connects to.
SHOWN = re.compile(r"(https?|s3|gs|azure-blob)://|/data/", re.IGNORECASE)
_ENCODED = re.compile(r"https?://|/", re.IGNORECASE)  # addresses whose paths are percent-encoded


def write(labels: Labels, file: TextIO, prefix: str = "") -> None:
    """Write a task for each image; `prefix` is the address below which a server has the images."""
    file.write("[")
    hidden, archived, example = 0, 0, ""
    for image in labels.images(voc.RULES if prefix else PLAIN):
        address = _address(image, labels.folder_of(image), prefix)
        if not prefix and (image.is_archived or not SHOWN.match(address)):
            hidden, example = hidden + 1, example or address
        archived += image.is_archived
        task = json.dumps(_task(image, address))
        file.write(("," if image.number > 1 else "") + "\n" + task)
    file.write("\n]\n")
    if hidden:
        labels.remarks.append(
            f"{hidden} tasks have a data.image that Label Studio cannot show "
            f"({printable(mask(example))}): serve the images, and give the address of their folder "
            "as --image-prefix"
        )
    if prefix and archived:
        labels.remarks.append(
            f"{archived} images lie in archives: serve the folder {voc.IMAGES} of an export "
            "--to voc --with-images, which has files of these names"
        )
    interface = printable(labeling_config(labels.chosen))
    labels.remarks.append(f"labeling interface: {interface}")


def _address(image: LabelledImage, folder: str, prefix: str) -> str:
    """Return where Label Studio finds an image.

    That is its image_id, or, below `prefix`, its path below the `folder` of the images. An image of
    an archive has the name there that an export to VOC with the images gives it.
    """
    if not prefix:
        return image.image_id
    path = image.name if image.is_archived else below(image.image_id, image.shard, folder)
    path = quote(path) if _ENCODED.match(prefix) else path
    return f"{prefix}{'' if prefix.endswith(('/', '=')) else '/'}{path}"


def labeling_config(classes: dict[int, str]) -> str:
    """Return the labelling interface of the tasks, which users paste into a project's settings."""
    names = "".join(f"<Label value={quoteattr(name)}/>" for name in dict.fromkeys(classes.values()))
    return (
        f'<View><Image name="image" value="$image"/>'
        f'<RectangleLabels name="label" toName="image">{names}</RectangleLabels></View>'
    )


def _task(image: LabelledImage, address: str) -> dict[str, Any]:
    """Make a task from an image, which Label Studio finds at `address`."""
    prediction = {
        "model_version": image.model,
        "score": round(max((box.score for box in image.boxes), default=0.0), 8),
        "result": [_region(image, number, box) for number, box in enumerate(image.boxes)],
    }
    data = {
        "image": address,
        "image_id": image.image_id,
        "file_name": image.name,
        "shard": image.shard,
    }
    return {"id": image.number, "data": data, "predictions": [prediction]}


def _region(image: LabelledImage, number: int, box: Box) -> dict[str, Any]:
    """Make a region from a box; positions and sizes are percents of the image."""
    box = box.inside(image.width, image.height)
    value = {
        "x": 100 * box.x_min / image.width,
        "y": 100 * box.y_min / image.height,
        "width": 100 * (box.x_max - box.x_min) / image.width,
        "height": 100 * (box.y_max - box.y_min) / image.height,
    }
    return {
        "id": f"{image.number}-{number}",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "score": round(box.score, 8),
        "value": {
            **{name: round(percent, DECIMALS) for name, percent in value.items()},
            "rotation": 0,
            "rectanglelabels": [box.label],
        },
    }
