"""Canaries are the scenes of the package, or a user's own annotated images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.demo.scenes import SHAPES, scene
from jobs.label.canaries import images
from jobs.label.canaries.choice import choose_canaries
from jobs.label.canaries.images import RENDERED_FILE, digest_of, prepare_canaries, read_canaries
from jobs.label.canaries.options import CanaryOptions
from jobs.label.options import LabelOptions
from jobs.label.run_record import recorded_command
from jobs.output.canaries import has_canaries, write_canary_record
from model.resize import AS_DISPLAYED
from pipeline.storage.files import InputError
from tests.support.samples import jpeg

SEED = 20261128


def write_annotations(folder: Path, count: int = 1, category: str = "star") -> str:
    document: dict[str, Any] = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(count)],
        "categories": [{"id": 1, "name": category}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12}
        ],
    }
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    (folder / "truth.json").write_text(json.dumps(document))
    return str(folder / "truth.json")


def test_the_scenes_of_the_package_are_those_of_their_seed() -> None:
    found = read_canaries("rendered", SHAPES)
    assert [image.name for image in found.images] == [f"scene-{n}.jpg" for n in (2, 27, 43, 58)]
    prepared = prepare_canaries(found, AS_DISPLAYED, enlarge=True)
    for image, canary in zip(found.images, prepared, strict=True):
        wanted = scene(
            SEED, int(image.name.removeprefix("scene-").removesuffix(".jpg")), (340, 256)
        )
        assert [one.label for one in image.objects] == [SHAPES[n] for n in wanted.labels]
        assert np.array([one.box for one in image.objects]) == pytest.approx(wanted.boxes)
        assert canary.displayed == (256, 340)
        apart = np.abs(canary.pixels.astype(int) - wanted.pixels)
        assert apart.mean() < 8  # JPEG


def test_images_lie_beside_their_annotations(tmp_path: Path) -> None:
    found = read_canaries(write_annotations(tmp_path), SHAPES)
    (image,) = found.images
    assert image.encoded == jpeg(0)
    assert [(one.label, one.box) for one in image.objects] == [("star", (1, 2, 4, 6))]
    assert found.source == str(tmp_path / "truth.json")


def test_wrong_canaries_are_refused_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"no object is of a class of the model.*for shapes-tiny"):
        read_canaries("rendered", ("", "person"))
    with pytest.raises(InputError, match="has 17 images"):
        read_canaries(write_annotations(tmp_path, 17), SHAPES)
    place = write_annotations(tmp_path)
    document = json.loads(Path(place).read_text())
    document["images"][0]["file_name"] = "sub/../../0.jpg"
    (tmp_path / "outside.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"sub/\.\./\.\./0\.jpg lies outside of the folder"):
        read_canaries(str(tmp_path / "outside.json"), SHAPES)
    (tmp_path / "0.jpg").write_text("text")
    with pytest.raises(InputError, match=r"the canary 0\.jpg"):
        choose(CanaryOptions(canaries=place), tmp_path / "out")
    (tmp_path / "0.jpg").unlink()
    with pytest.raises(InputError, match=r"0\.jpg"):
        read_canaries(place, SHAPES)
    monkeypatch.setattr(images, "MOST_BYTES", 100)
    with pytest.raises(InputError, match="MiB"):
        read_canaries(str(RENDERED_FILE), SHAPES)
    with pytest.raises(InputError, match="give one of them"):
        CanaryOptions(canaries="none", renew_canaries=True).check_canaries()


def choose(options: CanaryOptions, output: Path, mark: str = "f00d") -> Any:
    return choose_canaries(options, str(output), mark, SHAPES, AS_DISPLAYED)


def test_an_output_goes_on_with_its_canaries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert choose(CanaryOptions(), output) is None and not has_canaries(str(output))
    with pytest.raises(InputError, match="has no canaries of this model"):
        choose(CanaryOptions(renew_canaries=True), output)
    first = choose(CanaryOptions(canaries="rendered"), output)
    assert not first.is_recorded
    answers = {"fp32 on cpu": [{"error": "e"}] * 4}
    write_canary_record(str(output), "f00d", "20260101T000000Z-aaaaaa", answers, first.reference)
    again = choose(CanaryOptions(), output)
    assert again.is_recorded and again.digest == first.digest
    assert choose(CanaryOptions(canaries="rendered"), output).is_recorded
    assert choose(CanaryOptions(canaries="none"), output) is None
    renewed = choose(CanaryOptions(renew_canaries=True), output)
    assert (renewed.is_recorded, renewed.reference.answers) == (False, {})
    others = write_annotations(tmp_path)
    with pytest.raises(InputError, match="has other canaries of this model"):
        choose(CanaryOptions(canaries=others), output)
    assert choose(CanaryOptions(canaries=others, renew_canaries=True), output).digest == digest_of(
        read_canaries(others, SHAPES)
    )
    assert not capsys.readouterr().err
    assert choose(CanaryOptions(), output, "beef") is None
    assert "of another model, of another threshold, or of other options" in capsys.readouterr().err


def test_a_recorded_command_renews_canaries_as_it_did() -> None:
    options = LabelOptions("in", "out", model="m", canaries="known.json", renew_canaries=True)
    record = {"options": options.without_secrets("in")}
    assert "--canaries known.json --renew-canaries" in recorded_command(record)
