"""Pascal VOC: one XML file for each image."""

import csv
from functools import lru_cache
from xml.sax.saxutils import escape

from jobs.exports.place import TABLE, Folder
from jobs.exports.reader import MAPPING, Box, LabelledImage, Labels, mapping_row
from pipeline.storage.urls import printable

ENTRIES = ("Annotations", TABLE)


def write(labels: Labels, folder: Folder) -> None:
    """Write `Annotations/album/a.xml` for `album/a.jpg`; an image without boxes has no objects."""
    table = csv.writer(folder.table)
    table.writerow(MAPPING)
    for image in labels.images(".xml"):
        file = f"Annotations/{image.file}"
        folder.add(file, _image_xml(image))
        table.writerow((file, *mapping_row(image)))


def _image_xml(image: LabelledImage) -> str:
    """Write the XML as text: building elements, a dozen for each box, takes five times as long."""
    objects = "".join(_box_xml(image, box.inside(image.width, image.height)) for box in image.boxes)
    return f"""<annotation>
  <filename>{_escape_text(image.name)}</filename>
  <path>{_escape_text(image.image_id)}</path>
  <size><width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>
  <segmented>0</segmented>
{objects}</annotation>
"""


def _box_xml(image: LabelledImage, box: Box) -> str:
    """Write one box as an object.

    As in VOC, its corners are whole pixels that the box covers, counted from 1, the last included.
    """
    left, right = _pixel_range(box.x_min, box.x_max, image.width)
    top, bottom = _pixel_range(box.y_min, box.y_max, image.height)
    return f"""  <object>
    <name>{_escape_text(box.label)}</name>
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
