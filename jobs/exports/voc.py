"""Pascal VOC: an XML file an image."""

import csv
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from jobs.exports.place import Folder
from jobs.exports.reader import MAPPING, Box, LabelledImage, Labels, mapped
from model.urls import printable

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
    root = Element("annotation")
    _text(root, "filename", image.name)
    _text(root, "path", image.image_id)
    size = SubElement(root, "size")
    for name, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        _text(size, name, str(value))
    _text(root, "segmented", "0")
    for box in image.boxes:
        _object(root, image, box.inside(image.width, image.height))
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def _object(root: Element, image: LabelledImage, box: Box) -> None:
    """Whole pixels that the box covers, counted from 1, the last one included, as VOC has them."""
    found = SubElement(root, "object")
    _text(found, "name", box.label)
    for name, value in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
        _text(found, name, value)
    left, right = _pixels(box.x_min, box.x_max, image.width)
    top, bottom = _pixels(box.y_min, box.y_max, image.height)
    place = SubElement(found, "bndbox")
    for name, pixel in (("xmin", left), ("ymin", top), ("xmax", right), ("ymax", bottom)):
        _text(place, name, str(pixel))
    _text(found, "confidence", f"{box.score:.8f}")


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """The first and the last pixel between two edges, at least one."""
    first = min(round(low) + 1, size)
    return first, max(first, min(round(high), size))


def _text(parent: Element, name: str, text: str) -> None:
    """An element; what XML cannot hold is spelled out, as it would be for a terminal."""
    SubElement(parent, name).text = printable(text)
