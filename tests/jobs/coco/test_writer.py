"""Pycocotools and our own reader read the documents that are written."""

import json
from collections.abc import Iterator
from pathlib import Path

from pycocotools.coco import COCO

from jobs.coco.reader import read_annotations
from jobs.coco.records import Category, Image
from jobs.coco.writer import NewAnnotation, NewImage, write_annotations

CATEGORIES = [Category(1, "dog"), Category(3, "traffic light")]
BOXES = [NewAnnotation(3, (1.5, 2, 30, 40.25), 1207.5, 0.875), NewAnnotation(1, (0, 0, 4, 5), 20)]
IMAGES = [
    NewImage("a.jpg", 640, 480, BOXES, {"image_id": "s3://lake/a.jpg"}),
    NewImage("empty.jpg", 100, 90, []),
    NewImage('b "quoted" ü.jpg', 10, 20, BOXES[1:]),
]


def write(file: Path, images: list[NewImage]) -> Path:
    with file.open("w", encoding="utf-8") as target:
        write_annotations(target, CATEGORIES, images)
    return file


def test_pycocotools_reads_it(tmp_path: Path) -> None:
    coco = COCO(str(write(tmp_path / "file.json", IMAGES)))
    assert {key: one["name"] for key, one in coco.cats.items()} == {1: "dog", 3: "traffic light"}
    first, empty, last = (coco.imgs[number] for number in (1, 2, 3))
    assert first == {
        "id": 1,
        "file_name": "a.jpg",
        "width": 640,
        "height": 480,
        "image_id": "s3://lake/a.jpg",
    }
    assert (empty["file_name"], last["file_name"]) == ("empty.jpg", 'b "quoted" ü.jpg')
    assert [coco.getAnnIds(imgIds=[number]) for number in (1, 2, 3)] == [[1, 2], [], [3]]
    assert coco.anns[1] == {
        "id": 1,
        "image_id": 1,
        "category_id": 3,
        "bbox": [1.5, 2, 30, 40.25],
        "area": 1207.5,
        "iscrowd": 0,
        "score": 0.875,
    }
    assert "score" not in coco.anns[2]


def test_the_reader_reads_it(tmp_path: Path) -> None:
    found = read_annotations(str(write(tmp_path / "file.json", IMAGES)))
    assert found.images["1"] == Image("1", "a.jpg", 640, 480)
    assert found.classes == {1: "dog", 3: "traffic light"}
    written = [box for image in IMAGES for box in image.annotations]
    assert [(one.category_id, one.bbox, one.area) for one in found.annotations] == [
        (box.category_id, box.bbox, box.area) for box in written
    ]


def test_a_document_without_images_is_whole(tmp_path: Path) -> None:
    made = json.loads(write(tmp_path / "file.json", []).read_text())
    assert (made["images"], made["annotations"], len(made["categories"])) == ([], [], 2)


def test_images_are_written_as_they_come(tmp_path: Path) -> None:
    """All images except those in the file's buffer are written before the last one is drawn."""
    file = tmp_path / "file.json"

    def images() -> Iterator[NewImage]:
        for number in range(10_000):
            yield NewImage(f"{number}.jpg", 640, 480, BOXES)
        assert '"9000.jpg"' in file.read_text()

    with file.open("w", encoding="utf-8") as target:
        write_annotations(target, CATEGORIES, images())
    assert len(COCO(str(file)).anns) == 20_000
