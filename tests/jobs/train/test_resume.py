"""A training goes on where it was saved, with the same classes, and nothing else."""

import errno
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from jobs.cli import main, message_of
from jobs.train.checkpoints import LAST, LOCK, WEIGHTS, Checkpoints, locked
from jobs.train.options import TrainOptions
from model.checkpoint import read_weights
from pipeline.storage.errors import CommandFailed


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4" + b"x" * 99,
        None,
        {"step": 5},
        [1],
        {"model": {}, "step": -5},
        {"model": {}, "step": "5"},
        {"model": {}, "step": True},
        {"model": {}, "step": 5, "labels": 5},
        {"model": {}, "step": 5, "labels": [5]},
        {"model": {}, "step": 5, "weights": 5},
        {"model": {}, "step": 5, "model_name": ["detr"]},
        {"model": {}, "step": 5, "images": 5},
        {"model": {}, "step": 5, "data": 5},
        {"model": {}, "step": 5, "data": {"output": "x"}},
        {"model": {}, "step": 5, "data": {"images": 5}},
    ],
)
def test_what_was_saved_is_damaged(
    content: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "last.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    options = ["--steps", "9", "--evaluate-images", "1", "--weights", "random"]
    assert main(["train", str(tmp_path), "--resume", *options]) == 1
    said = capsys.readouterr().err
    assert f"{file} is damaged, or of a training with other options" in said
    assert "begin anew without --resume" in said and said.count("\n") == 1


def of_training(folder: Path) -> Checkpoints:
    """The checkpoints of a small training, which has made one step."""
    net = torch.nn.Linear(2, 2)
    net.config = SimpleNamespace(labels=("", "circle"))  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler.step()
    return Checkpoints(TrainOptions(folder), net, optimizer, scheduler, "")  # type: ignore[arg-type]


NAN = float("nan")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model", 5),
        ("model.bias", torch.tensor([1, NAN])),
        ("model.bias", torch.ones(3)),
        ("model.bias", "x"),
        ("optimizer", 5),
        ("optimizer", {}),
        ("optimizer.state", 5),
        ("optimizer.state.0", 5),
        ("optimizer.state.7", {}),
        ("optimizer.state.0.exp_avg", 5),
        ("optimizer.state.0.exp_avg", torch.ones(3)),
        ("optimizer.state.1.exp_avg_sq", torch.tensor([1, NAN])),
        ("optimizer.state.1.exp_avg_sq", torch.tensor([1, 2])),
        ("optimizer.state.0.step", torch.tensor(NAN)),
        ("optimizer.state.0.step", torch.ones(2)),
        ("optimizer.param_groups", []),
        ("optimizer.param_groups", [5]),
        ("optimizer.param_groups.0.lr", NAN),
        ("optimizer.param_groups.0.lr", "x"),
        ("optimizer.param_groups.0.betas", (0.9,)),
        ("optimizer.param_groups.0.params", [1, 0]),
        ("scheduler", 5),
        ("scheduler", {}),
        ("scheduler.base_lrs", [0.1, 0.1]),
        ("scheduler.base_lrs", [True]),
        ("scheduler.last_epoch", None),
    ],
)
def test_a_part_of_what_was_saved_is_damaged(path: str, value: object, tmp_path: Path) -> None:
    checkpoints = of_training(tmp_path)
    checkpoints.save(1)
    saved = torch.load(tmp_path / LAST, weights_only=True)
    place, *rest = path.split(".")
    part = saved
    for name in rest:
        part = part[int(place) if place.isdigit() else place]
        place = name
    part[int(place) if place.isdigit() else place] = value
    assert of_training(tmp_path).load() == 1
    torch.save(saved, tmp_path / LAST)
    resumed = of_training(tmp_path)
    with pytest.raises(CommandFailed, match="is damaged, or of a training with other options"):
        resumed.load()


def test_a_state_of_another_version_of_torch_is_resumed(tmp_path: Path) -> None:
    """It has fields that this version does not save, and lacks others that it does."""
    of_training(tmp_path).save(1)
    saved = torch.load(tmp_path / LAST, weights_only=True)
    saved["scheduler"] |= {"verbose": False}
    saved["optimizer"]["param_groups"][0] |= {"verbose": False}
    del saved["optimizer"]["param_groups"][0]["decoupled_weight_decay"]
    torch.save(saved, tmp_path / LAST)
    assert of_training(tmp_path).load() == 1


def test_other_weights_and_another_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = {"model": {}, "step": 5, "weights": "packaged", "model_name": "shapes-tiny"}
    torch.save(saved, tmp_path / LAST)
    for words, line in (
        (["--weights", "shapes-tiny"], "began from --weights packaged: leave it out"),
        (["--model", "detr"], "is of a training of shapes-tiny: give --model shapes-tiny"),
    ):
        assert main(["train", str(tmp_path), "--resume", *words]) == 2
        assert line in capsys.readouterr().err


def test_a_data_set_of_an_earlier_version_is_to_be_given_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its state does not say where that was, and rendered scenes were trained on instead."""
    torch.save({"model": {}, "step": 5, "images": "2 images with 2 boxes"}, tmp_path / LAST)
    assert main(["train", str(tmp_path), "--resume"]) == 2
    assert "2 images with 2 boxes: give --images and --annotations again" in capsys.readouterr().err


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder of images with two annotation files, whose classes have each other's numbers."""
    for number in range(2):
        Image.new("RGB", (64, 48), (90 * number, 90, 90)).save(tmp_path / f"{number}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(2)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1 + i, "bbox": [9, 9, 20, 20], "area": 400}
        for i in range(2)
    ]
    for file, names in (("a.json", ("circle", "star")), ("b.json", ("star", "circle"))):
        categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
        document = {"images": images, "annotations": boxes, "categories": categories}
        (tmp_path / file).write_text(json.dumps(document))
    return tmp_path


def train_command(dataset: Path, annotations: str, *words: str) -> list[str]:
    command = ["train", str(dataset / "out"), "--weights", "packaged", "--images", str(dataset)]
    command += ["--annotations", str(dataset / annotations), "--batch-size", "1"]
    return [*command, "--precision", "fp32", *words]


@pytest.mark.slow
def test_a_training_goes_on_with_its_classes_and_a_new_rate(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = dataset / "out"
    assert main(train_command(dataset, "a.json", "--steps", "1")) == 0
    begun = {file.name: file.read_bytes() for file in out.iterdir()}
    capsys.readouterr()
    assert main(train_command(dataset, "b.json", "--steps", "2", "--resume")) == 2
    said = capsys.readouterr().err
    assert "has learnt the classes 1=circle, 2=star, and the annotations have 1=star" in said
    assert {file.name: file.read_bytes() for file in out.iterdir()} == begun
    document = json.loads((dataset / "a.json").read_text())
    document["annotations"] = document["annotations"][:1]
    (dataset / "a.json").write_text(json.dumps(document))
    slow = ("--resume", "--learning-rate", "1e-9")
    command = train_command(dataset, "a.json", "--steps", "2", *slow)
    assert main([word for word in command if word not in ("--weights", "packaged")]) == 0
    said = capsys.readouterr().out
    assert "resumed from step 1" in said and "last.pt, on 2 images with 1 box of 2 cat" in said
    assert "before that step it was trained on 2 images with 2 boxes of 2 categories" in said
    _, notes = read_weights(out / WEIGHTS)
    assert notes["weights"] == "packaged" and notes["trained_on"].startswith("2 images with 1 box")
    assert main(["train", str(out), "--resume", "--steps", "3", "--batch-size", "1"]) == 0
    said = capsys.readouterr().out
    assert f"--images {dataset} --annotations {dataset / 'a.json'}, as before" in said
    assert "resumed from step 2" in said and "before that step" not in said
    assert main(train_command(dataset, "a.json", "--steps", "2", "--resume")) == 2
    saved = torch.load(out / LAST, weights_only=True)
    assert max(saved["scheduler"]["base_lrs"]) == 1e-9 and saved["step"] == 3
    before = torch.load(io.BytesIO(begun[LAST]), weights_only=True)["model"]
    assert all(torch.allclose(before[name], one, atol=1e-7) for name, one in saved["model"].items())
    assert main(train_command(dataset, "a.json", "--learning-rate", "0")) == 2
    assert "more than 0" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_that_a_full_disk_cut_off_are_written_later(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    command = train_command(dataset, "a.json", "--steps", "1")
    with monkeypatch.context() as patch:
        patch.setattr("jobs.train.checkpoints.save_weights", fill_disk)
        assert main(command) == 1
    assert not (dataset / "out" / WEIGHTS).exists()
    assert main([*command, "--resume"]) == 0
    assert read_weights(dataset / "out" / WEIGHTS)[1]["step"] == "1"
    assert main([*command, "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err


def test_two_trainings_cannot_write_one_folder(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(dataset / "out"):
        assert main(train_command(dataset, "a.json", "--steps", "1")) == 1
    assert "another training writes to" in capsys.readouterr().err
    assert [file.name for file in (dataset / "out").iterdir()] == [LOCK]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    """`/dev/full` takes the place of the unfinished file: torch itself says nothing of a disk."""
    checkpoints = of_training(tmp_path)
    (tmp_path / "last.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        checkpoints.save(1)
    assert message_of(error.value).startswith(f"{tmp_path / LAST}: the disk is full: make room")
    assert list(tmp_path.iterdir()) == []
