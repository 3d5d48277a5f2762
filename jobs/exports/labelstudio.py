"""Label Studio: one JSON list of tasks, with the boxes as predictions to correct."""

import json
from typing import Any, TextIO
from xml.sax.saxutils import quoteattr

from jobs.exports.reader import Box, LabelledImage, Labels

DECIMALS = 6  # decimals of percents: a hundredth of a pixel in images a million pixels wide


def write(labels: Labels, file: TextIO) -> None:
    file.write("[")
    for image in labels.images():
        file.write(("," if image.number > 1 else "") + "\n" + json.dumps(_task(image)))
    file.write("\n]\n")


def labeling_config(classes: dict[int, str]) -> str:
    """Return the labelling interface of the tasks, which users paste into a project's settings."""
    names = "".join(f"<Label value={quoteattr(name)}/>" for name in dict.fromkeys(classes.values()))
    return (
        f'<View><Image name="image" value="$image"/>'
        f'<RectangleLabels name="label" toName="image">{names}</RectangleLabels></View>'
    )


def _task(image: LabelledImage) -> dict[str, Any]:
    """Make a task from an image.

    Label Studio finds the image by its image_id. That is a URL where the image is a file of its
    own.
    """
    prediction = {
        "model_version": image.model,
        "score": round(max((box.score for box in image.boxes), default=0.0), 8),
        "result": [_region(image, number, box) for number, box in enumerate(image.boxes)],
    }
    data = {"image": image.image_id, "file_name": image.name, "shard": image.shard}
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
