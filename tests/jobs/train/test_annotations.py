"""Annotations are checked before the first step: refused, or said and counted."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from jobs.train.coco_dataset import CocoDataset
from jobs.train.data import Sample
from jobs.train.datasets import describe_validation
from jobs.train.image_files import Unreadable
from jobs.train.options import TrainOptions
from model.checkpoint import read_weights
from model.resize import ResizeRule
from pipeline.stages.decode import decode_image

RULE = ResizeRule(shorter=60, longest=80)
CATEGORIES = [{"id": 3, "name": "red"}, {"id": 5, "name": "blue"}]


def write_images(folder: Path, *names: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(folder / name)


def image(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "width": 80, "height": 60, **changes}


def box(of: int, /, **changes: Any) -> dict[str, Any]:
    numbers = {"id": 900, "image_id": of, "category_id": 3, "bbox": [10, 10, 20, 20]}
    return {**numbers, "area": 400, "iscrowd": 0, **changes}


def write_truth(folder: Path, name: str = "truth.json", **changes: Any) -> Path:
    document = {"images": [image(0), image(1)], "categories": CATEGORIES}
    document |= {"annotations": [box(0), box(1)]} | changes
    (folder / name).write_text(json.dumps(document))
    return folder / name


def read(folder: Path, **changes: Any) -> CocoDataset:
    return CocoDataset(folder, write_truth(folder, **changes), RULE, flip=False)


def boxes_of(dataset: CocoDataset, index: int) -> Any:
    sample = dataset[index]
    assert isinstance(sample, Sample)
    return sample.target.boxes.tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path, "0.png", "1.png")
    return tmp_path


REFUSED: dict[str, dict[str, Any]] = {
    "annotation 2 (id 900, image_id 1, category_id 4) is of a category that the file does not": {
        "annotations": [box(0), box(1, category_id=4)]
    },
    "annotation 1 (id 900, image_id 0, category_id 500) is of a category that": {
        "annotations": [box(0, category_id=500)]
    },
    "the category 'far' has the id 6000: a model has an output for each number": {
        "categories": [*CATEGORIES, {"id": 6000, "name": "far"}]
    },
    "the category 'far' has the id 10000000": {
        "categories": [*CATEGORIES, {"id": 10_000_000, "name": "far"}]
    },
    "the image 1 has 2001 boxes, and 2000 are allowed": {"annotations": [box(1)] * 2001},
    "category_id 'red' is not a whole number": {"annotations": [box(0, category_id="red")]},
    "in annotation 1 (image_id 0): NaN is not a number": {
        "annotations": [box(0, bbox=[1, float("nan"), 3, 4])]
    },
    "annotation 1 (id 900, image_id 0): bbox ['nan', 1, 1, 1] is not": {
        "annotations": [box(0, bbox=["nan", 1, 1, 1])]
    },
    "bbox [1, 2, 3, -4] is not": {"annotations": [box(0, bbox=[1, 2, 3, -4])]},
    "has no categories": {"categories": []},
    "has no usable box in images of": {"annotations": []},
    ". Its list of annotations is empty": {"annotations": []},
    "left out: 2 annotations of images that the file does not list; the first is annotation 1 (id "
    "900, image_id im-1, category_id 3)": {
        "annotations": [box(0, image_id="im-1"), box(0, image_id="im-2")]
    },
    "images are missing and are left out: 1; the first is 7.png": {
        "images": [image(0), image(7)],
        "annotations": [box(7)],
    },
    "train reads image files alone, and none within tar or Parquet files": {
        "images": [image(0, file_name="s3://lake/scenes.tar#0.png")]
    },
    "boxes without an area are left out: 1; the first is annotation 1 (id 900": {
        "annotations": [box(0, bbox=[1, 2, 0, 4])]
    },
    "boxes that lie outside of their images are left out: 1": {
        "annotations": [box(0, bbox=[81, 2, 5, 4])]
    },
    "crowds are left out: 1": {"annotations": [box(0, iscrowd=1)]},
    "none of 1 images of the annotations lies in": {"images": [image(7)]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_annotations_that_cannot_be_trained_on_are_refused_before_the_first_step(
    message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = write_truth(folder, **REFUSED[message])
    command = ["train", str(folder / "out"), "--images", str(folder), "--annotations", str(truth)]
    assert main([*command, "--steps", "1"]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "written", [{"iscrowd": None}, {"area": "400"}, {"area": None}, {"area": ""}, {"iscrowd": "0"},
                {"iscrowd": False}, {"image_id": "0"}, {"image_id": 0.0}, {"category_id": "3"},
                {"image_id": "0.0"}, {"bbox": ["10", 10, 20.0, "20"]}]
)  # fmt: skip
def test_fields_that_tools_write_otherwise_are_the_same(
    written: dict[str, Any], folder: Path
) -> None:
    usual = read(folder)
    other = read(folder, annotations=[box(0, **written), box(1)])
    assert other.annotations == usual.annotations
    assert boxes_of(other, 0) == boxes_of(usual, 0) == [pytest.approx([0.25, 1 / 3, 0.25, 1 / 3])]


def test_boxes_are_cut_at_the_edge_of_their_image(folder: Path) -> None:
    dataset = read(
        folder, annotations=[box(0, bbox=[-20, 30, 60, 60]), box(1, bbox=[60, 0, 20.5, 60])]
    )
    assert boxes_of(dataset, 0) == [pytest.approx([0.25, 0.75, 0.5, 0.5])]
    assert boxes_of(dataset, 1) == [pytest.approx([0.875, 0.5, 0.25, 1])]
    assert [note for note in dataset.notes if "edge" in note] == [
        "boxes that reach beyond their images are cut at the edge: 1; the first is annotation 1 "
        "(id 900, image_id 0, category_id 3)"
    ]


def test_an_image_of_another_size_is_said_and_an_upright_one_is_not(folder: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (60, 80)).save(folder / "turned.jpg", exif=turned)
    images = [image(0, width=800, height=600), image(1), image(2, file_name="turned.jpg")]
    notes = read(folder, images=images).notes
    assert [note for note in notes if "size" in note] == [
        "images have another size than the annotations say, and boxes are taken as pixels of the "
        f"image: 1; the first is {folder / '0.png'} (80 x 60, and not 800 x 600)"
    ]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_turned_images_have_the_size_and_pixels_that_label_sees(
    suffix: str, orientation: int, folder: Path
) -> None:
    turned = Image.Exif()
    turned[0x0112] = orientation
    colours = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    path = folder / f"turned.{suffix}"
    Image.fromarray(colours).save(path, exif=turned)
    seen = decode_image(path.read_bytes(), 10**6)
    height, width = seen.shape[:2]
    whole = [box(0, bbox=[0, 0, width, height])]
    listed = [image(0, file_name=path.name, width=width, height=height)]
    dataset = read(folder, images=listed, annotations=whole)
    assert dataset.files.found["0"].size == (width, height)
    assert not [note for note in dataset.notes if "size" in note or "boxes" in note]
    assert boxes_of(dataset, 0) == [pytest.approx([0.5, 0.5, 1, 1])]


def test_images_of_16_bits_are_trained_on_as_they_are_labelled(folder: Path) -> None:
    values = np.linspace(0, 65535, 60 * 80).reshape(60, 80).astype(np.uint16)
    Image.fromarray(values).save(folder / "deep.png")
    dataset = read(folder, images=[image(0, file_name="deep.png")], annotations=[box(0)])
    sample = dataset[0]
    assert not isinstance(sample, Unreadable)
    pixels = sample.image.float()
    shares = [(pixels <= pixels.min()).float().mean(), (pixels >= pixels.max()).float().mean()]
    assert max(shares) < 0.1  # neither black nor white


def test_no_program_reads_an_image_that_is_postscript(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    (folder / "2.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 60\n%%EndComments\nshowpage\n"
    )
    dataset = read(folder, images=[image(0), image(2)], annotations=[box(0)])
    assert [one.path.name for one in dataset.files.unreadable] == ["2.png"]


@pytest.mark.parametrize("name", ["album\\2.png", "./album/2.png", "album/2.png"])
def test_names_with_folders_are_found(name: str, folder: Path) -> None:
    write_images(folder, "album/2.png")
    dataset = read(folder, images=[image(0, file_name=name)], annotations=[box(0)])
    assert dataset.files.found["0"].path == folder / "album" / "2.png"
    assert not [note for note in dataset.notes if "folder" in note]
    within = CocoDataset(folder / "album", folder / "truth.json", RULE, flip=False)
    assert within.files.found["0"].path == folder / "album" / "2.png"
    assert f"by the ends of their names: 1; the first is {name}" in "".join(within.notes)


def test_urls_are_found_where_they_are_or_by_their_longest_end(folder: Path) -> None:
    for name in ("2.png", "album/2.png", "my album/2.png"):
        write_images(folder, name)
    one = (folder / "my album" / "2.png").as_uri()
    names = [one, "FILE://localhost/elsewhere/album/2.png", "https://h.example/x/%32.png?a=b"]
    images = [image(number, file_name=name) for number, name in enumerate(names)]
    dataset = read(folder, images=images, annotations=[box(0)])
    found = [dataset.files.found[str(number)].path for number in range(3)]
    assert found == [folder / name for name in ("my album/2.png", "album/2.png", "2.png")]
    assert "found by the ends of their names: 2; the first is FILE://local" in "".join(
        dataset.notes
    )


def test_images_outside_of_the_folder_are_said_and_the_folder_is_not_named(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    names = [str(folder / "0.png"), (folder / "1.png").as_uri()]
    images = [image(number, file_name=name) for number, name in enumerate(names)]
    truth = write_truth(folder, images=images)
    dataset = CocoDataset(empty, truth, RULE, flip=False)
    assert dataset.notes[0] == (
        f"images lie outside of {empty}, where their names lead: 2; the first is {names[0]}"
    )
    options = TrainOptions(empty, images=empty, annotations=truth)
    said = describe_validation(options, dataset)
    assert f"(2 images of {truth})" in said and str(empty) not in said
    within = CocoDataset(folder, truth, RULE, flip=False)
    assert not [note for note in within.notes if "outside" in note]
    some = write_truth(folder, "some.json", images=[images[0], image(1)])
    (empty / "1.png").write_bytes((folder / "1.png").read_bytes())
    both = CocoDataset(empty, some, RULE, flip=False)
    assert f"(2 images of {empty} and of where absolute names lead, {some})" in describe_validation(
        TrainOptions(empty, images=empty, annotations=some), both
    )


@pytest.mark.parametrize("name", ["scenes.tar", "scenes.parquet"])
def test_archives_are_said_to_be_no_images(name: str, folder: Path) -> None:
    (folder / name).write_text("no image")
    images = [image(0), image(1, file_name=f"{(folder / name).as_uri()}#1.png")]
    notes = read(folder, images=images, annotations=[box(0)]).notes
    why = "train reads image files alone, and none within tar or Parquet files"
    assert (
        f"images cannot be read and are left out: 1; the first is {folder / name} ({why})" in notes
    )


def test_categories_with_one_name_are_said(folder: Path) -> None:
    categories = [*CATEGORIES, {"id": 9, "name": "red"}]
    assert "several categories are called red: 3, 9" in read(folder, categories=categories).notes


@pytest.mark.parametrize("first", ["a/1.png", "1.png"])
def test_two_images_that_would_be_one_file_are_refused(
    first: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [image(0, file_name=first), image(1, file_name="b/1.png")]
    truth = write_truth(folder, images=names)
    command = ["train", str(folder / "out"), "--images", str(folder), "--annotations", str(truth)]
    assert main(command) == 2
    assert f"1.png may be {first} and b/1.png of the annotations" in capsys.readouterr().err


def test_images_that_are_missing_or_damaged_are_left_out_and_counted(folder: Path) -> None:
    (folder / "2.png").write_text("no image")
    (folder / "3.png").write_bytes((folder / "0.png").read_bytes()[:5000])
    images = [image(number) for number in range(5)]
    dataset = read(folder, images=images, annotations=[box(number) for number in range(5)])
    assert "images are missing and are left out: 1; the first is 4.png" in dataset.notes
    assert any(
        note.startswith("images cannot be read and are left out: 1") for note in dataset.notes
    )
    assert [listed.id for listed in dataset.images] == ["0", "1", "3"]
    assert isinstance(dataset[2], Unreadable)


def test_categories_of_validation_are_those_of_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = write_truth(folder)
    other = write_truth(folder, "other.json", categories=[{"id": 3, "name": "green"}])
    command = ["train", str(folder / "out"), "--images", str(folder), "--annotations", str(truth)]
    assert main([*command, "--validation-annotations", str(other)]) == 2
    assert (
        "the category 3 is green in --validation-annotations and red in" in capsys.readouterr().err
    )


def train_on(folder: Path) -> int:
    truth = write_truth(folder)
    command = ["train", str(folder / "out"), "--images", str(folder), "--annotations", str(truth)]
    return main([*command, *"--weights packaged --steps 1 --batch-size 2 --precision fp32".split()])


@pytest.mark.slow
def test_a_damaged_image_does_not_end_a_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "1.png").write_bytes((folder / "0.png").read_bytes()[:5000])
    assert train_on(folder) == 0
    said = capsys.readouterr()
    start = (
        "training shapes-tiny from the packaged weights of shapes-tiny, on 2 images with 2 boxes"
    )
    assert said.out.startswith(start) and "step 1 of 1: loss" in said.out
    modes = [(folder / "out" / name).stat().st_mode for name in ("last.pt", "model.safetensors")]
    assert modes[0] == modes[1]
    assert said.err.count("1.png cannot be decoded and is left out") == 1
    assert "left out: 1 image that could not be decoded" in said.err
    _, recipe = read_weights(folder / "out" / "model.safetensors")
    assert recipe["weights"] == "packaged"
    assert train_on(folder) == 2  # a second training would replace the first
    assert "holds a training: --resume goes on with it" in capsys.readouterr().err


def test_a_training_without_a_whole_image_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("0.png", "1.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:5000])
    assert train_on(folder) == 1
    assert "none of 2 images can be decoded" in capsys.readouterr().err
