"""YOLO: one text file for each image with a line for each box, and the names of the classes.

Ultralytics finds the labels of an image by its path: it replaces the last folder called `images` by
`labels`, and the suffix by `.txt`. Files without a suffix that it knows are no images to it.
"""

import csv
from pathlib import PurePosixPath

import yaml

from jobs.exports.classes import rewrite_names
from jobs.exports.earlier_export import TABLE, Layout
from jobs.exports.names import NameRules
from jobs.exports.place import Folder
from jobs.exports.reader import MAPPING, LabelledImage, Labels, mapping_row

IMAGES = "images"
LAYOUT = Layout("labels", ("data.yaml", "classes.txt", TABLE), IMAGES)
# Suffixes that Ultralytics reads.
_READ = frozenset(".avif .bmp .dng .heic .heif .jp2 .jpeg .jpg .mpo .png .tif .tiff .webp".split())
RULES = NameRules(".txt", IMAGES)


def write(labels: Labels, folder: Folder) -> None:
    """Write `labels/album/a.txt` for the image `album/a.jpg`, empty for an image without boxes.

    Classes are numbered from 0, in the order of the model's label ids.
    """
    numbers = {label_id: k for k, label_id in enumerate(labels.classes)}
    table = csv.writer(folder.table)
    table.writerow(MAPPING)
    unread: dict[str, int] = {}
    for image in labels.images(RULES):
        file = f"labels/{image.file}"
        folder.add(file, _box_lines(image, numbers))
        table.writerow((file, *mapping_row(image)))
        suffix = PurePosixPath(image.name).suffix.lower()
        if suffix not in _READ:
            unread[suffix] = unread.get(suffix, 0) + 1
    names = dict(enumerate(labels.classes.values()))
    # Without `path`, the other paths are relative to the folder of the file.
    data = {"train": IMAGES, "val": IMAGES, "nc": len(names), "names": names}
    folder.add("data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    lines = rewrite_names(names, lambda name: " ".join(name.split()))
    folder.add("classes.txt", "".join(f"{name}\n" for name in lines.values()))
    if unread:
        suffixes = ", ".join(f"{count} {suffix}" for suffix, count in sorted(unread.items()))
        labels.remarks.append(f"Ultralytics reads no images of these formats: {suffixes}")


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
