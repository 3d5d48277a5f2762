"""`load` gives what `label` stores, for paths, PIL images and arrays, and draws it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.demo.scenes import scene
from jobs.label.label import label
from jobs.output.views import connect
from model.errors import CheckpointError, UnknownName
from pipeline import load
from pipeline.local import LocalDetector
from pipeline.storage.errors import InputError
from tests.support.labelling import tiny_options

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def detector() -> LocalDetector:
    return load("shapes-tiny", precision="fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(4):
        Image.fromarray(scene(0, number).pixels).save(folder / f"{number}.png")
    return folder


def test_paths_pil_images_and_arrays_give_the_same(detector: LocalDetector, folder: Path) -> None:
    path = folder / "0.png"
    image = Image.open(path)
    by_path, by_text, by_pil, by_array = detector([path, str(path), image, np.array(image)])
    assert len(by_path) > 0 and set(by_path.labels) <= set(detector.labels)
    for other in (by_text, by_pil, by_array, detector(path)):
        assert (other.labels, other.scores, other.boxes) == (
            by_path.labels, by_path.scores, by_path.boxes,
        )  # fmt: skip
    assert by_path.scores == sorted(by_path.scores, reverse=True) and by_path.scores[-1] >= 0.3


def test_an_array_that_may_not_be_written_is_an_image_too(
    detector: LocalDetector, folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    found = detector(np.asarray(Image.open(folder / "0.png")))
    assert found.boxes == detector(folder / "0.png").boxes
    assert not [one for one in recwarn if "writable" in str(one.message)]


@pytest.mark.parametrize("wrong", [b"bytes", 7, [b"bytes"], None])
def test_what_is_no_image_is_named(detector: LocalDetector, wrong: Any) -> None:
    with pytest.raises(InputError, match=r"(bytes|int|NoneType) is no image: give the path"):
        detector(wrong)


def test_images_keep_their_order(detector: LocalDetector, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    together = detector([*paths, paths[0]])
    alone = [detector(path) for path in paths]
    assert [found.boxes for found in together] == [found.boxes for found in [*alone, alone[0]]]
    assert detector([]) == []


def test_boxes_are_drawn(detector: LocalDetector, folder: Path) -> None:
    found = detector(folder / "0.png")
    drawn = np.array(found.draw())
    assert drawn.shape == found.image.shape and (drawn != found.image).any()
    nothing = load("shapes-tiny", threshold=0.999)(folder / "0.png")
    assert len(nothing) == 0 and (np.array(nothing.draw()) == nothing.image).all()


def test_images_are_upright(detector: LocalDetector, folder: Path, tmp_path: Path) -> None:
    image = Image.open(folder / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    turned, upright = detector([tmp_path / "turned.png", folder / "1.png"])
    assert turned.boxes == upright.boxes
    assert detector(Image.open(tmp_path / "turned.png")).boxes == upright.boxes


def test_images_of_more_bits_and_arrays_that_run_backwards(
    detector: LocalDetector, folder: Path, tmp_path: Path
) -> None:
    pixels = np.array(Image.open(folder / "2.png"))
    backwards = np.ascontiguousarray(pixels[..., ::-1])[..., ::-1]
    assert detector(backwards).boxes == detector(folder / "2.png").boxes
    grey = pixels.mean(2).astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "deep.png")
    by_path, by_pil = detector([tmp_path / "deep.png", Image.open(tmp_path / "deep.png")])
    assert (by_path.image == by_pil.image).all() and by_path.image.std() > 5


@pytest.mark.parametrize(
    ("image", "line"),
    [
        ("no/such/file.jpg", r"no/such/file\.jpg cannot be read"),
        (__file__, "is no image that can be read"),
        (np.zeros((4, 4), np.uint8), r"must be \(H, W, 3\) uint8, and is \(4, 4\) uint8"),
        (np.zeros((4, 4, 3)), r"and is \(4, 4, 3\) float64"),
        (np.zeros((0, 4, 3), np.uint8), r"and is \(0, 4, 3\)"),
        (Image.new("RGB", (0, 4)), "the image cannot be read"),
    ],
)
def test_what_is_no_image_is_one_line(detector: LocalDetector, image: Any, line: str) -> None:
    with pytest.raises(InputError, match=line):
        detector(image)


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UnknownName, match="unknown model 'detrr'"):
        load("detrr")
    with pytest.raises(UnknownName, match="has no precision 'int8'"):
        load("detr", "random", precision="int8")
    with pytest.raises(CheckpointError, match="no weights at"):
        load("shapes-tiny", "no/such/file.pth")


def test_the_example_of_readme_runs_without_ray(folder: Path) -> None:
    (example,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        if "load(" in block
    ]
    assert len([line for line in example.splitlines() if line]) == 5
    script = example.replace('"deformable-detr"', '"shapes-tiny"').replace("photo.jpg", "0.png")
    script += "\nimport sys; assert 'ray' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\w+ 0\.\d\d \[", done.stdout, re.MULTILINE)
    assert Image.open(folder / "boxes.png").size == Image.open(folder / "0.png").size


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_boxes_are_those_of_label(folder: Path, tmp_path: Path, weights: str) -> None:
    assert label(tiny_options(folder, tmp_path / "out", weights)) == 0
    rows = connect(str(tmp_path / "out")).sql(
        "SELECT parse_filename(image_id), label, score, x_min, y_min, x_max, y_max "
        "FROM detections ORDER BY 1, detection"
    )
    expected = rows.fetchall()
    paths = sorted(folder.glob("[0-9].png"))
    found = load("shapes-tiny", weights, precision="fp32", threshold=0.0)(paths)
    ours = [
        (path.name, name, score, *box)
        for path, one in zip(paths, found, strict=True)
        for name, score, box in zip(one.labels, one.scores, one.boxes, strict=True)
    ]
    assert len(ours) == len(expected) == 100 * len(paths)
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2:] == pytest.approx(theirs[2:], abs=1e-2, rel=1e-4)
