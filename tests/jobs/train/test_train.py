"""Training is resumed where it was stopped, and takes datasets with other classes."""

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from jobs.cli import main
from jobs.train.coco_dataset import CocoDataset
from jobs.train.data import Sample, ScenesForTraining
from jobs.train.datasets import datasets, describe_validation
from jobs.train.options import TrainOptions
from jobs.train.train import describe_end, steps, train
from model.checkpoint import read_weights
from model.named import PACKAGED
from model.resize import ResizeRule
from model.zoo import create_model


def short_options(output: Path, **other: int) -> TrainOptions:
    options = TrainOptions(output, steps=4, batch_size=2, warmup=2, precision="fp32")
    return replace(options, evaluate_every=2, evaluate_images=2, **other)  # type: ignore[arg-type]


def weights_of(folder: Path) -> dict[str, Tensor]:
    weights, _ = read_weights(folder / "model.safetensors")
    return weights


@pytest.mark.slow
def test_stopped_training_is_resumed_and_gives_the_same_weights(tmp_path: Path) -> None:
    train(short_options(tmp_path / "whole"))
    stopped = short_options(tmp_path / "stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.train.train.steps", stop_after(2))
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    _, notes = read_weights(tmp_path / "stopped" / "model.safetensors")
    assert notes["step"] == "2"  # usable although the training has not ended
    train(stopped, resume=True)
    whole, resumed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "stopped")
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-3, msg=name)
    with pytest.raises(ValueError, match="nothing to resume"):
        train(stopped, resume=True)
    started = create_model("shapes-tiny", "random", training=True).state_dict()
    assert any(not started[name].half().equal(whole[name]) for name in whole)


def stop_after(count: int) -> Callable[..., Iterator[tuple[int, float]]]:
    """Return a replacement of `steps` that is interrupted after this many steps."""

    def interrupted_steps(*arguments: Any) -> Iterator[tuple[int, float]]:
        for step, loss in steps(*arguments):
            yield step, loss
            if step == count:
                raise KeyboardInterrupt

    return interrupted_steps


def sample_of(dataset: Any, index: int) -> Sample:
    sample = dataset[index]
    assert isinstance(sample, Sample)
    return sample


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two images with a red and a blue square, in COCO's format; its categories are 3 and 5."""
    images, annotations = [], []
    for index, colour in enumerate(["red", "blue"]):
        image = Image.new("RGB", (120, 90), "white")
        image.paste(colour, (20, 30, 60, 70))
        image.save(tmp_path / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": 120, "height": 90})
        annotations.append(
            {
                "id": index + 1,
                "image_id": index,
                "category_id": 3 + 2 * index,
                "bbox": [20, 30, 40, 40],  # without area and iscrowd, as some tools write it
            }
        )
    categories = [{"id": 3, "name": "red"}, {"id": 5, "name": "blue"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "weights", "outputs"),
    [("shapes-tiny", str(PACKAGED), (1, 60, 6)), ("detr", "random", (1, 100, 7))],
)
def test_fine_tuning_takes_new_classes(
    model: str, weights: str, outputs: tuple[int, ...], dataset: Path
) -> None:
    command = ["train", str(dataset / "out"), "--model", model, "--steps", "2"]
    command += ["--weights", weights, "--batch-size", "2", "--evaluate-every", "2"]
    command += ["--images", str(dataset), "--annotations", str(dataset / "instances.json")]
    assert main(command) == 0
    net = create_model(model, str(dataset / "out" / "model.safetensors"))
    assert net.config.labels == ("", "", "", "red", "", "blue")
    assert net(torch.rand(1, 3, 64, 64)).pred_logits.shape == outputs


def test_a_dataset_as_other_tools_write_it_is_read(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids are texts, a crowd is null, and one object is of an image that is not listed."""
    file = dataset / "instances.json"
    document = json.loads(file.read_text())
    for annotation in document["annotations"]:
        annotation.update(image_id=str(annotation["image_id"]), iscrowd=None, area=None)
    document["annotations"].append({**document["annotations"][0], "image_id": 77})
    document["annotations"].append({**document["annotations"][0], "iscrowd": 1})
    document["annotations"].append({**document["annotations"][0], "bbox": [1, 2, 0, 5]})
    file.write_text(json.dumps(document))
    options = TrainOptions(dataset / "out", images=dataset, annotations=file)
    training, validation, labels = datasets(options)
    assert labels == ("", "", "", "red", "", "blue")
    assert [sample_of(training, index).target.labels.tolist() for index in (0, 1)] == [[3], [5]]
    assert len(validation.truth().annotations) == 4
    said = capsys.readouterr().err
    assert "left out: 1 annotation of images that the file does not list" in said
    assert "crowds are left out: 1" in said
    assert "boxes without an area are left out: 1; the first is annotation 5 (id 1" in said


@pytest.mark.parametrize("own", [False, True])
def test_a_training_says_what_its_ap_is_measured_on(
    own: bool, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its first lines, in its last, and in the notes of the weights."""
    file, others = dataset / "instances.json", dataset / "others.json"
    document = json.loads(file.read_text())
    document["images"].pop()
    document["annotations"].pop()
    others.write_text(json.dumps(document))
    command = ["train", str(tmp_path / "out"), "--weights", str(PACKAGED), "--steps", "1"]
    command += ["--batch-size", "1", "--images", str(dataset), "--annotations", str(file)]
    command += ["--validation-annotations", str(others)] if own else []
    assert main(command) == 0
    first, said, *others_said = capsys.readouterr().out.splitlines()
    assert first.startswith("training shapes-tiny from the packaged weights")
    assert any(f"on the {'validation' if own else 'training'} set" in line for line in others_said)
    if own:
        assert said == f"validation set: 1 image of {dataset}, {others}"
    else:
        assert f"none is given, so AP is that of the training set (2 images of {dataset}" in said
    assert read_weights(tmp_path / "out" / "model.safetensors")[1]["validation"] == said


def test_rendered_scenes_to_validate_on_are_counted(tmp_path: Path) -> None:
    options = TrainOptions(tmp_path, evaluate_images=7)
    _, validation, _ = datasets(options)
    assert describe_validation(options, validation).endswith("7 held-out rendered scenes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "gone", "--annotations", "instances.json"], "--images gone does not exist"),
        (["--images", "."], "--images needs --annotations"),
        (["--annotations", "instances.json"], "--annotations needs --images"),
        (["--validation-images", "."], "--validation-images needs --images"),
        (["--device", "tpu:9"], "--device tpu:9 cannot be used here"),
        (["--weights", "packagd"], "no weights at packagd"),
        (["--weights", "packaged", "--model", "deformable-detr"], "give --model shapes-tiny"),
        (["--images", ".", "--annotations", "empty.json"], "has no images"),
        (["--images", ".", "--annotations", "broken.json"], "annotation 1: bbox [1] is not"),
        (["--images", ".", "--annotations", "large.json"], "'a' has the id 10000000: give"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--resume"], "there is no"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(dataset)
    empty = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    broken = {**empty, "images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"bbox": [1]}]}
    large = {**broken, "annotations": [], "categories": [{"id": 10**7, "name": "a"}]}
    for name, document in (("empty", empty), ("broken", broken), ("large", large)):
        Path(f"{name}.json").write_text(json.dumps(document))
    assert main(["train", "out", "--evaluate-images", "1", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_published_model_takes_new_classes(dataset: Path) -> None:
    command = ["train", str(dataset / "out"), "--model", "deformable-detr", "--steps", "1"]
    command += ["--weights", "random", "--batch-size", "1", "--precision", "fp32"]
    command += ["--images", str(dataset), "--annotations", str(dataset / "instances.json")]
    assert main(command) == 0
    net = create_model("deformable-detr", str(dataset / "out" / "model.safetensors"))
    assert net.config.num_classes == 6


def test_mirrored_boxes_follow_their_image(dataset: Path) -> None:
    rule = ResizeRule(shorter=90, longest=120)
    flipping = CocoDataset(dataset, dataset / "instances.json", rule, flip=True)
    seen = set()
    for attempt in range(20):
        torch.manual_seed(attempt)
        sample = sample_of(flipping, 0)
        left, top, right, low = 20, 30, 60, 70
        cx = float(sample.target.boxes[0, 0])
        if cx > 0.5:
            left, right = 60, 100
        inside = sample.image[top + 2 : low - 2, left + 2 : right - 2].float().mean((0, 1))
        assert inside.tolist() == pytest.approx([255, 0, 0], abs=2)
        seen.add(cx > 0.5)
    assert seen == {True, False}


def test_scenes_of_a_batch_share_a_size_and_are_repeatable() -> None:
    scenes = ScenesForTraining(0, 8, 4, ResizeRule(96, 192, 32))
    assert len({scenes[i].image.shape for i in range(4)}) == 1
    assert all(side % 32 == 0 for i in (0, 4) for side in scenes[i].image.shape[:2])
    assert scenes[5].image.equal(scenes[5].image)
    assert not scenes[5].image.equal(scenes[4].image)


def test_the_last_lines_say_what_a_training_is_worth(tmp_path: Path) -> None:
    options = TrainOptions(tmp_path / "my weights", model="detr", steps=3)
    good, use = describe_end(options, 0.4321).splitlines()
    assert good == "AP 0.4321 on the validation set"
    assert use.endswith(f"--model detr --weights '{tmp_path / 'my weights' / 'model.safetensors'}'")
    assert shlex.split(use.partition(": ")[2])[-1] == str(options.output / "model.safetensors")
    _, short, _ = describe_end(options, 0.0001).splitlines()
    assert "next to nothing after 3 steps: train it for longer, as by --resume" in short
    assert describe_end(options, -1.0).startswith("no AP: no image of the validation set")
