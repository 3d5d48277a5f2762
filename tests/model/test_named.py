"""Weights of named models come from a folder where that is set, and are fetched beforehand."""

from pathlib import Path

import pytest

from jobs.cli import main
from jobs.label.label import label
from jobs.label.options import LabelOptions
from model.checkpoint import save_weights
from model.detectors import describe
from model.errors import CheckpointError
from model.named import (
    MODELS,
    PACKAGED,
    WEIGHTS,
    fetch,
    file_in_folder,
    set_config,
    weights_of,
)
from model.weights import file_sha256
from model.zoo import build, create_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv(WEIGHTS, str(folder))
    return folder


@pytest.mark.slow
def test_the_folder_goes_before_the_hub(folder: Path) -> None:
    name = "deformable-detr-single-scale"
    assert file_in_folder(name) is None and weights_of(name) == MODELS[name].weights
    save_weights(build(set_config(name)), folder / f"{name}.safetensors", {})
    expected = str(folder / f"{name}.safetensors")
    assert weights_of(name) == weights_of("deformable-detr", name) == expected
    assert describe(name, None).weights == file_sha256(Path(expected))
    assert weights_of(name, "random") == "random"


def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(WEIGHTS, str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}=.*gone is no folder"):
        weights_of("detr")
    assert main(["models", "--fetch", "detr"]) == 2
    assert "is no folder: make it, or unset the variable" in capsys.readouterr().err


def test_weights_are_fetched_into_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "published.safetensors"
    save_weights(create_model("shapes-tiny", training=True), stored, {"note": "published"})
    own = MODELS["shapes-tiny"]
    monkeypatch.setitem(
        MODELS,
        "shapes-tiny",
        type(own)(**{**vars(own), "weights": f"file://{stored}"}),
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = fetch("shapes-tiny")
    assert found == folder / "shapes-tiny.safetensors"
    assert found.read_bytes() == stored.read_bytes()
    stored.unlink()
    assert fetch("shapes-tiny") == found and sorted(folder.iterdir()) == [found]


def test_the_command_fetches_and_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--fetch", "shapes-tiny"]) == 0
    assert capsys.readouterr().out == f"shapes-tiny: {PACKAGED}\n"
    assert main(["models", "--fetch", "detrr"]) == 2
    assert "did you mean detr?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_workers_take_the_file_that_the_command_found(
    folder: Path, tmp_path: Path, testdata: Path, weights: str
) -> None:
    (folder / "shapes-tiny.safetensors").write_bytes(Path(weights).read_bytes())
    source = testdata / "coco" / "images"
    options = LabelOptions(str(source), str(tmp_path / "out"), model="shapes-tiny", limit=3)
    assert label(options) == 0


def test_weights_of_another_model_name_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    notes = {"model": "shapes-tiny"}  # as `train` writes it
    save_weights(create_model("shapes-tiny", training=True), path, notes)
    for name in ("deformable-detr-single-scale", "detr"):
        with pytest.raises(CheckpointError, match=f"not fit {name}: give --model shapes-tiny"):
            create_model(name, str(path))
    save_weights(create_model("shapes-tiny", training=True), path, {"model": "../other"})
    with pytest.raises(CheckpointError, match="give other weights"):
        create_model("detr", str(path))


def test_the_classes_of_a_model_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "shapes-tiny"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert listed["1"] == "circle" and len(listed) == 10
    assert main(["models", "deformable-detr"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  1  person" in lines and len(lines) == 80  # the holes have no name
    assert main(["models", "shape-tiny"]) == 2
    assert "did you mean shapes-tiny" in capsys.readouterr().err
    assert main(["models", "detr", "--fetch", "detr"]) == 2
