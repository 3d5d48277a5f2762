"""Pascal VOC: an XML file an image."""

import csv
from functools import lru_cache
from xml.sax.saxutils import escape

from jobs.exports.place import Folder
from jobs.exports.reader import MAPPING, Box, LabelledImage, Labels, mapped
from pipeline.storage.urls import printable

ENTRIES = ("Annotations", "images.csv")
TABLE = "images.csv"


def write(labels: Labels, folder: Folder) -> None:
    """`Annotations/album/a.xml` for the image `album/a.jpg`, without objects where it has none."""
    table = csv.writer(folder.table)
    table.writerow(MAPPING)
    for image in labels.images(".xml"):
        file = f"Annotations/{image.file}"
        folder.add(file, _document(image))
        table.writerow((file, *mapped(image)))


def _document(image: LabelledImage) -> str:
    """Written as text: elements, a dozen a box, would take five times as long."""
    objects = "".join(_object(image, box.inside(image.width, image.height)) for box in image.boxes)
    return f"""<annotation>
  <filename>{_text(image.name)}</filename>
  <path>{_text(image.image_id)}</path>
  <size><width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>
  <segmented>0</segmented>
{objects}</annotation>
"""


def _object(image: LabelledImage, box: Box) -> str:
    """Whole pixels that the box covers, counted from 1, the last one included, as VOC has them."""
    left, right = _pixels(box.x_min, box.x_max, image.width)
    top, bottom = _pixels(box.y_min, box.y_max, image.height)
    return f"""  <object>
    <name>{_text(box.label)}</name>
    <pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
    <bndbox>
      <xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>
    </bndbox>
    <confidence>{box.score:.8f}</confidence>
  </object>
"""


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """The first and the last pixel between two edges, at least one."""
    first = min(round(low) + 1, size)
    return first, max(first, min(round(high), size))


@lru_cache(maxsize=10_000)
def _text(text: str) -> str:
    """`text` in XML; what that cannot hold is spelled out, as it would be for a terminal."""
    return escape(printable(text))
