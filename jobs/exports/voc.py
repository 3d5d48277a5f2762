"""Pascal VOC: one XML file for each image, a list of the images, and the names of the classes."""

import csv
from functools import lru_cache
from xml.sax.saxutils import escape

from jobs.exports.classes import rewrite_names
from jobs.exports.earlier_export import TABLE, Layout
from jobs.exports.names import NameRules
from jobs.exports.place import Folder
from jobs.exports.reader import MAPPING, Box, LabelledImage, Labels, mapping_row
from pipeline.storage.urls import printable

IMAGES = "JPEGImages"
LIST, LABEL_MAP = "ImageSets/Main/default.txt", "labelmap.txt"
LAYOUT = Layout("Annotations", (LIST, LABEL_MAP, TABLE), IMAGES)
RULES = NameRules(".xml")
BACKGROUND = "background"  # the first class of VOC's label maps


def write(labels: Labels, folder: Folder) -> None:
    """Write `Annotations/album/a.xml` for `album/a.jpg`; an image without boxes has no objects.

    CVAT and datumaro find a dataset by the list of its images. Of classes that `labelmap.txt` does
    not name they know those of VOC alone.
    """
    names = rewrite_names(labels.classes, _name_in_label_map)
    table = csv.writer(folder.table)
    table.writerow(MAPPING)
    with folder.open_text(LIST) as images:
        for image in labels.images(RULES):
            file = f"Annotations/{image.file}"
            folder.add(file, _image_xml(image, names))
            images.write(image.file.removesuffix(RULES.labels) + "\n")
            table.writerow((file, *mapping_row(image)))
    folder.add(LABEL_MAP, _label_map(names))
    if changed := [labels.classes[k] for k, name in names.items() if name != labels.classes[k]]:
        shown = ", ".join(_shown(name) for name in changed)
        labels.remarks.append(f"classes with other names, for the signs in labelmap.txt: {shown}")


def _name_in_label_map(label: str) -> str:
    """Return a name without the signs that mean something in `labelmap.txt`.

    A colon ends the name there, and a line that starts with # is a comment.
    """
    name = " ".join(printable(label).split()).replace(":", "_")
    return f"_{name[1:]}" if name.startswith("#") else name


def _shown(name: str) -> str:
    """Return a name as it stands in a line."""
    return repr(name) if name != name.strip() or not name.isprintable() else name


def _label_map(names: dict[int, str]) -> str:
    """Write a line for each class: name, colour, parts and actions, of which VOC needs the name."""
    rows = [f"{name}:::" for name in dict.fromkeys(names.values()) if name != BACKGROUND]
    return "\n".join(["# label:color_rgb:parts:actions", f"{BACKGROUND}:0,0,0::", *rows]) + "\n"


def _image_xml(image: LabelledImage, names: dict[int, str]) -> str:
    """Write the XML as text: building elements, a dozen for each box, takes five times as long."""
    objects = "".join(
        _box_xml(image, box.inside(image.width, image.height), names[box.label_id])
        for box in image.boxes
    )
    return f"""<annotation>
  <filename>{_escape_text(image.name)}</filename>
  <path>{_escape_text(image.image_id)}</path>
  <size><width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>
  <segmented>0</segmented>
{objects}</annotation>
"""


def _box_xml(image: LabelledImage, box: Box, name: str) -> str:
    """Write one box as an object of the class `name`.

    As in VOC, its corners are whole pixels that the box covers, counted from 1, the last included.
    """
    left, right = _pixel_range(box.x_min, box.x_max, image.width)
    top, bottom = _pixel_range(box.y_min, box.y_max, image.height)
    return f"""  <object>
    <name>{_escape_text(name)}</name>
    <pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
    <bndbox>
      <xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>
    </bndbox>
    <confidence>{box.score:.8f}</confidence>
  </object>
"""


def _pixel_range(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the first and the last pixel between two edges; they may be the same pixel."""
    first = min(round(low) + 1, size)
    return first, max(first, min(round(high), size))


@lru_cache(maxsize=10_000)
def _escape_text(text: str) -> str:
    """Escape `text` for XML; characters that XML cannot hold are spelled out, as for a terminal."""
    return escape(printable(text))
