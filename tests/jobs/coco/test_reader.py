"""Documents in COCO's format are read as records, or refused with a clear error."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from jobs.coco import reader
from jobs.coco.document import DamagedDocument
from jobs.coco.reader import AnnotationFile, label_names, read_annotations, read_results
from jobs.coco.records import Annotation, Annotations, Image, Result
from pipeline.storage.files import InputError, open_location

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}]
IMAGES = [
    {"id": 10, "file_name": "album/a.jpg", "width": 400, "height": 300},
    {"id": 11, "file_name": "b.jpg", "width": 640, "height": 480},
    {"id": "c", "file_name": "c.jpg", "width": 100, "height": 100},
]
OBJECTS: list[dict[str, Any]] = [
    {"id": 1, "image_id": 10, "category_id": 3, "bbox": [1, 2, 30, 40], "area": 900, "iscrowd": 0},
    {"id": 2, "image_id": 11, "category_id": 1, "bbox": [5, 6, 0, 8]},
]
RESULTS: list[dict[str, Any]] = [
    {"image_id": 11, "category_id": 3, "bbox": [1.5, 2, 30, 40.25], "score": 0.25},
    {"image_id": "10", "category_id": 1, "bbox": [-3, 0, 10, 10], "score": 1, "segmentation": {}},
    {"image_id": 11, "category_id": 1, "bbox": [5, 6, 0, 8], "score": 0.75},
]
NOT_A_BOX = "is not [x, y, width, height] in pixels"
NEEDED = ("file_name", "width", "height")


def document(**changes: Any) -> dict[str, Any]:
    return {"images": IMAGES, "annotations": OBJECTS, "categories": CATEGORIES, **changes}


def image(**changes: Any) -> dict[str, Any]:
    return document(images=[*IMAGES[:2], {**IMAGES[2], **changes}])


def annotation(**changes: Any) -> dict[str, Any]:
    return document(annotations=[OBJECTS[0], {**OBJECTS[1], **changes}])


def result(**changes: Any) -> list[dict[str, Any]]:
    return [RESULTS[0], {**RESULTS[1], **changes}, RESULTS[2]]


def write(folder: Path, content: Any) -> Path:
    """Write a file of these bytes or this text, or of this value as JSON."""
    file = folder / "file.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def read(folder: Path, content: Any, *needed: str) -> Annotations:
    return read_annotations(str(write(folder, content)), needed)


def results(folder: Path, content: Any) -> list[Result]:
    return list(read_results(write(folder, content), "DETECTIONS", {1, 3}))


DAMAGED = ("too early", "not valid JSON", "parse error", "invalid bytes", "trailing garbage")


def error_of(message: str, content: object = None) -> type[Exception]:
    """The error of what is no JSON, or of JSON that is not what it should be."""
    is_damaged = content == "" or message.startswith("is not an annotation file")
    return DamagedDocument if is_damaged or any(map(message.__contains__, DAMAGED)) else InputError


def test_an_annotation_file_as_records(tmp_path: Path) -> None:
    found = read(tmp_path, document(), *NEEDED)
    assert list(found.images.values()) == [
        Image("10", "album/a.jpg", 400, 300),
        Image("11", "b.jpg", 640, 480),
        Image("c", "c.jpg", 100, 100),
    ]
    assert found.classes == {3: "cat", 1: "dog"}
    assert found.annotations == [
        Annotation("10", 3, (1, 2, 30, 40), 900, False),
        Annotation("11", 1, (5, 6, 0, 8), 0, False),
    ]
    assert found.left_out == 0


def test_results_as_records(tmp_path: Path) -> None:
    assert results(tmp_path, RESULTS) == [
        Result("11", 3, (1.5, 2, 30, 40.25), 0.25),
        Result("10", 1, (-3, 0, 10, 10), 1),
        Result("11", 1, (5, 6, 0, 8), 0.75),
    ]
    assert results(tmp_path, []) == []


@pytest.mark.parametrize("written", [10, 10.0, "10", "10.0"])
def test_ids_are_the_same_however_they_are_written(written: Any, tmp_path: Path) -> None:
    assert results(tmp_path, result(image_id=written))[1].image_id == "10"
    truth = document(images=[{**IMAGES[0], "id": written}], annotations=[OBJECTS[0]])
    assert read(tmp_path, truth).annotations[0].image_id == "10"
    truth = document(categories=[{"id": written, "name": "cat"}], annotations=[])
    assert read(tmp_path, truth).classes == {10: "cat"}
    assert results(tmp_path, result(category_id=float(3)))[1].category_id == 3
    assert results(tmp_path, result(category_id="3"))[1].category_id == 3


def test_numbers_may_be_texts(tmp_path: Path) -> None:
    texts = ["1", "2.5", "3", "4"]
    assert results(tmp_path, result(bbox=texts, score="0.5"))[1] == Result(
        "10", 1, (1, 2.5, 3, 4), 0.5
    )
    found = read(tmp_path, annotation(bbox=texts, area="7", iscrowd="1"))
    assert found.annotations[1] == Annotation("11", 1, (1, 2.5, 3, 4), 7, True)
    assert read(tmp_path, image(height="90"), *NEEDED).images["c"].height == 90


def test_large_ids_of_categories_stay_exact(tmp_path: Path) -> None:
    large = 2**60 + 1
    assert list(read(tmp_path, document(categories=[{"id": large, "name": "a"}])).classes) == [
        large
    ]


@pytest.mark.parametrize("said", [0, 1, False, True, 1.0, None])
def test_crowds(said: Any, tmp_path: Path) -> None:
    assert read(tmp_path, annotation(iscrowd=said)).annotations[1].iscrowd == bool(said)


@pytest.mark.parametrize("absent", [None, ""])
def test_an_area_that_is_missing_is_that_of_the_box(absent: Any, tmp_path: Path) -> None:
    found = read(tmp_path, annotation(area=absent, iscrowd=absent, bbox=[0, 0, 3, 5]))
    assert [one.area for one in found.annotations] == [900, 15]
    assert [one.has_area for one in found.annotations] == [True, False]


def test_a_file_name_that_looks_like_a_number_stays(tmp_path: Path) -> None:
    assert read(tmp_path, image(file_name="10.0")).images["c"].file_name == "10.0"


def test_images_need_what_the_command_asks_for(tmp_path: Path) -> None:
    bare = document(images=[{"id": 10}, {"id": 11, "file_name": "", "width": 0, "height": "tall"}])
    found = read(tmp_path, bare)
    assert list(found.images.values()) == [
        Image("10", None, None, None),
        Image("11", None, None, None),
    ]
    with pytest.raises(InputError, match=r"image 1 .*no file_name \(one of 2 such entries"):
        read(tmp_path, bare, "file_name")


def test_annotations_of_what_is_not_listed_are_counted(tmp_path: Path) -> None:
    unknown = [{**OBJECTS[0], "image_id": 99}, {**OBJECTS[0], "category_id": 2}]
    found = read(tmp_path, document(annotations=[*OBJECTS, *unknown]))
    assert (len(found.annotations), found.left_out) == (2, 2)
    assert found.of_unlisted_images.first == "annotation 3 (id 1, image_id 99, category_id 3)"
    assert found.of_unlisted_categories.first == "annotation 4 (id 1, image_id 10, category_id 2)"


REFUSED_ANNOTATIONS: dict[str, Any] = {
    # images
    "image 3 (file_name 'c.jpg'): it has no id": image(id=None),
    "image 3 (id True, file_name 'c.jpg'): id True is neither a whole number nor a text": image(
        id=True
    ),
    "image 3 (id 1.5, file_name 'c.jpg'): id 1.5 is neither": image(id=1.5),
    "two images have the id 10": image(id="10"),
    "image 3 (id 'c'): it has no file_name": image(file_name=None),
    "its size is 0 x 100: give width and height in pixels": image(width=0),
    "its size is 100 x 'tall'": image(height="tall"),
    "its size is 100 x None": image(height=None),
    "image 4: 7 is not a JSON object": document(images=[*IMAGES, 7]),
    "has no images: its list `images` is empty": document(images=[]),
    "has no list `images`": {"annotations": [], "categories": CATEGORIES},
    # categories
    "has no categories: its list": document(categories=[]),
    "has no list `categories`": document(categories={"cat": 3}),
    "category 3 (id 1): an earlier category has the id 1 too": document(
        categories=[*CATEGORIES, {"id": 1, "name": "ox"}]
    ),
    "category 1 (id 'n01'): id 'n01' is not a whole number": document(
        categories=[{"id": "n01", "name": "ox"}]
    ),
    "category 1 (id 1): it has no name": document(categories=[{"id": 1}]),
    "category 1 (id 1): name '' is not a text": document(categories=[{"id": 1, "name": ""}]),
    "category 1: 'ox' is not a JSON object": document(categories=["ox"]),
    # annotations
    "has no list `annotations`": {"images": IMAGES, "categories": CATEGORIES},
    f"annotation 2 (id 2, image_id 11): bbox [1, 2, 3] {NOT_A_BOX}": annotation(bbox=[1, 2, 3]),
    f"bbox [1, 2, 3, -4] {NOT_A_BOX}": annotation(bbox=[1, 2, 3, -4]),
    f"bbox [1, 2, 3, True] {NOT_A_BOX}": annotation(bbox=[1, 2, 3, True]),
    f"bbox ['nan', 2, 3, 4] {NOT_A_BOX}": annotation(bbox=["nan", 2, 3, 4]),
    f"bbox [10000000000.0, 2, 3, 4] {NOT_A_BOX}": annotation(bbox=[1e10, 2, 3, 4]),
    "annotation 2 (id 2, image_id 11): it has no bbox": annotation(bbox=None),
    "annotation 2 (id 2): it has no image_id": annotation(image_id=None),
    "category_id 'cat' is not a whole number": annotation(category_id="cat"),
    "area 'large' is not a number from 0 up": annotation(area="large"),
    "area -1 is not a number from 0 up": annotation(area=-1),
    "iscrowd 2 is neither 0 nor 1": annotation(iscrowd=2),
    "a number has more than 64 bits in annotation 2": annotation(bbox=[1, 2, 3, 10**400]),
    "a number has more than 64 bits in annotation 2 (image_id 11)": annotation(area=10**4000),
    "category_id '9223372036854775808' is not a whole number of 64 bits": annotation(
        category_id=str(2**63)
    ),
    "image_id 10): bbox [] is not [x, y, width, height] in pixels (one of 2 such": document(
        annotations=[OBJECTS[1], *[{**OBJECTS[0], "bbox": []}] * 2]
    ),
    # the file
    "is not an annotation file in COCO's format": "",
    "the lists `images`, `categories` and `annotations`. It is a list": RESULTS,
    "in annotation 2 (image_id 11): NaN is not a number in JSON, near": annotation(
        bbox=[1, 2, float("nan"), 4]
    ),
    "Infinity is not a number in JSON": annotation(bbox=[1, 2, 3, float("-inf")]),
    "ends too early, in category 2: was it copied whole?": json.dumps(document())[:-10],
    "after annotation 1: parse error": json.dumps(document()).replace('}, {"id": 2', '} {"id": 2'),
    "invalid bytes in UTF8": b'{"images": [{"file_name": "\xff"}]}',
    "trailing garbage": json.dumps(document()) + "}",
}


@pytest.mark.parametrize("message", REFUSED_ANNOTATIONS)
def test_annotations_that_cannot_be_used(message: str, tmp_path: Path) -> None:
    with pytest.raises(error_of(message)) as refused:
        read(tmp_path, REFUSED_ANNOTATIONS[message], *NEEDED)
    said = str(refused.value)
    assert message in said
    assert said.startswith(f"annotations {tmp_path}/file.json")
    assert "\n" not in said


REFUSED_RESULTS: list[tuple[Any, str]] = [
    (result(bbox=[1, 2, 3]), f"entry 2 (image_id '10'): bbox [1, 2, 3] {NOT_A_BOX}"),
    (result(bbox=[1, 2, 3, -4]), f"bbox [1, 2, 3, -4] {NOT_A_BOX}"),
    (result(bbox=[1, None, 3, 4]), f"bbox [1, None, 3, 4] {NOT_A_BOX}"),
    (result(bbox=None), "entry 2 (image_id '10'): it has no bbox"),
    (result(bbox="wide"), f"bbox 'wide' {NOT_A_BOX}"),
    (result(bbox=[1, float("nan"), 3, 4]), "in entry 2 (image_id '10'): NaN is not a number"),
    (result(bbox=[1, 2, float("inf"), 4]), "entry 2 (image_id '10'): Infinity is not a number"),
    (result(score=1.25), "entry 2 (image_id '10'): score 1.25 is not between 0 and 1"),
    (result(score=float("nan")), "in entry 2 (image_id '10'): NaN is not a number in JSON"),
    (result(score=None), "entry 2 (image_id '10'): it has no score"),
    (result(score=True), "score True is not between"),
    (result(category_id=2), "category_id 2 is of no category in --annotations"),
    (result(category_id=1.5), "category_id 1.5 is not a whole number"),
    (result(category_id="dog"), "category_id 'dog' is not a whole number"),
    (result(image_id=None), "entry 2: it has no image_id"),
    ([{**RESULTS[0], "score": 2}] * 3, "entry 1 (image_id 11): score 2 is not between 0 and 1 (one "
     "of 3 such entries)"),
    ({"annotations": RESULTS}, "is not a JSON list"),
    (document(), "It is an object, as annotation files are"),
    ("", "is not a JSON list"),
    ("[1]", "entry 1: 1 is not a JSON object"),
    (result(image_id=10**400), "a number has more than 64 bits in entry 2"),
    (result(score=1).__repr__().replace("'", '"').replace("1,", "1e400,"), "more than 64 bits"),
    (json.dumps(RESULTS)[:-9], "ends too early, in entry 3 (image_id 11): was it copied whole?"),
    (json.dumps(RESULTS)[:-1] + ",", "ends too early, after entry 3"),
    (json.dumps(RESULTS)[:-1] + ",]", "not valid JSON after entry 3"),
    (json.dumps(RESULTS).replace("},", "}", 1), "not valid JSON after entry 1: parse error"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED_RESULTS)
def test_results_that_cannot_be_used(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(error_of(message, content)) as refused:
        results(tmp_path, content)
    said = str(refused.value)
    assert message in said
    assert said.startswith("DETECTIONS")
    assert "\n" not in said


def test_a_name_is_never_taken_for_nan(tmp_path: Path) -> None:
    truth = json.dumps(document(categories=[{"id": 1, "name": "NaN, Infinity"}]))
    with pytest.raises(DamagedDocument, match="trailing garbage"):
        read(tmp_path, truth + "]")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    assert len(results(tmp_path, mark + json.dumps(RESULTS).encode())) == 3
    assert len(read(tmp_path, mark + json.dumps(document()).encode()).images) == 3


def test_label_names_have_holes() -> None:
    assert label_names({3: "cat", 1: "dog"}, "file") == ("", "dog", "", "cat")
    for key in (-1, reader.MOST_LABELS):
        with pytest.raises(InputError, match=f"file: the category 'ox' has the id {key}: give"):
            label_names({key: "ox"}, "file")


def test_files_of_a_bucket_and_files_that_are_missing(bucket: str, tmp_path: Path) -> None:
    fs, path = open_location(bucket, "INPUT")
    fs.put_file(str(write(tmp_path, document())), f"{path}/truth.json")
    assert len(read_annotations(f"{bucket}/truth.json").images) == 3
    with pytest.raises(InputError, match=r"annotations .*/absent\.json does not exist"):
        read_annotations(f"{bucket}/absent.json")


@pytest.mark.slow
def test_entries_are_read_one_at_a_time(tmp_path: Path) -> None:
    """Outlines are most of a file, and must not be held in memory together."""
    outline = [[0.125] * 1000]
    with (tmp_path / "file.json").open("w") as file:
        file.write(
            '{"images": [{"id": 10}], "categories": [{"id": 3, "name": "a"}], "annotations": ['
        )
        file.write(
            ",".join(json.dumps({**OBJECTS[0], "segmentation": outline}) for _ in range(1000))
        )
        file.write("]}")
    size = (tmp_path / "file.json").stat().st_size
    tracemalloc.start()
    found = read_annotations(str(tmp_path / "file.json"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.annotations) == 1000
    assert peak < size / 5


def test_the_first_entry_comes_before_the_last_is_read(tmp_path: Path) -> None:
    broken = json.dumps([RESULTS[0]] * 10_000)[:-1]
    entries: Iterator[Result] = read_results(write(tmp_path, broken), "DETECTIONS", {3})
    assert next(entries).image_id == "11"
    with pytest.raises(DamagedDocument, match="ends too early, after entry 10000"):
        list(entries)


@pytest.mark.parametrize(
    "name",
    ["eval_pairs/instances_val2014_100.json", "coco/annotations/instances_val2017_public55.json"],
)
def test_published_files_as_pycocotools_reads_them(name: str, testdata: Path) -> None:
    found, coco = read_annotations(str(testdata / name), NEEDED), COCO(str(testdata / name))
    assert list(found.images) == [str(key) for key in coco.imgs]
    assert found.classes == {key: one["name"] for key, one in coco.cats.items()}
    assert found.left_out == 0
    for one, other in zip(found.annotations, coco.dataset["annotations"], strict=True):
        assert list(one.bbox) == other["bbox"]
        assert (one.image_id, one.category_id) == (str(other["image_id"]), other["category_id"])
        assert (one.area, one.iscrowd) == (other["area"], bool(other["iscrowd"]))


def test_images_may_be_read_without_the_rest(tmp_path: Path) -> None:
    """`image_info_test-dev2017.json` has no annotations."""
    content = {"images": IMAGES, "categories": CATEGORIES}
    file = AnnotationFile(write(tmp_path, content), "--annotations")
    assert [category.name for category in file.categories()] == ["cat", "dog"]
    assert [one.id for one in file.images(NEEDED)] == ["10", "11", "c"]
