"""YOLO: one text file for each image with a line for each box, and the names of the classes."""

import csv

import yaml

from jobs.exports.place import TABLE, Folder
from jobs.exports.reader import MAPPING, LabelledImage, Labels, mapping_row

ENTRIES = ("labels", "data.yaml", "classes.txt", TABLE)


def write(labels: Labels, folder: Folder) -> None:
    """Write `labels/album/a.txt` for the image `album/a.jpg`, empty for an image without boxes.

    Classes are numbered from 0, in the order of the tables' label ids.
    """
    numbers = {label_id: k for k, label_id in enumerate(labels.classes)}
    table = csv.writer(folder.table)
    table.writerow(MAPPING)
    for image in labels.images(".txt"):
        file = f"labels/{image.file}"
        folder.add(file, _box_lines(image, numbers))
        table.writerow((file, *mapping_row(image)))
    names = dict(enumerate(labels.classes.values()))
    data = {"path": ".", "train": "images", "val": "images", "nc": len(names), "names": names}
    folder.add("data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    folder.add("classes.txt", "".join(" ".join(name.split()) + "\n" for name in names.values()))


def _box_lines(image: LabelledImage, numbers: dict[int, int]) -> str:
    """Write `class x y width height` for each box: centre and size as fractions of the image."""
    lines = []
    for box in (box.inside(image.width, image.height) for box in image.boxes):
        place = (
            (box.x_min + box.x_max) / 2 / image.width,
            (box.y_min + box.y_max) / 2 / image.height,
            (box.x_max - box.x_min) / image.width,
            (box.y_max - box.y_min) / image.height,
        )
        lines.append(f"{numbers[box.label_id]} " + " ".join(f"{v:.8f}" for v in place) + "\n")
    return "".join(lines)
