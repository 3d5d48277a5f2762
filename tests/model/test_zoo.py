"""The figures that the list of models states are right."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.cli import main
from model.config import FasterRcnnConfig
from model.errors import CheckpointError, UnknownName
from model.faster_rcnn import build as build_faster_rcnn
from model.named import MODELS, PACKAGED, RANDOM, NamedModel, weights_of
from model.zoo import build, create_model


@pytest.mark.parametrize(
    "named",
    [
        pytest.param(named, marks=() if name == "shapes-tiny" else pytest.mark.slow, id=name)
        for name, named in MODELS.items()
    ],
)
def test_gmacs_are_what_torch_counts(named: NamedModel) -> None:
    config = named.config()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if isinstance(config, FasterRcnnConfig):
            build_faster_rcnn(config)([torch.rand(3, 480, 640)])
        else:
            # torch's counter follows parameters that learn, and cannot without a graph
            build(config).eval().requires_grad_(False)(
                torch.zeros(1, 3, *config.resize.target_size(480, 640))
            )
    assert counter.get_total_flops() / 2e9 == pytest.approx(named.gmacs, abs=0.05)


def test_models_command_lists_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(MODELS)
    assert all("GMACs" in line and "M parameters" in line for line in lines)


def test_weights_may_be_named_by_their_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("packaged", "shapes-tiny", None, ""):
        assert weights_of("shapes-tiny", name) == str(PACKAGED)
    assert weights_of("shapes-tiny", "packaged#sha256=ab") == f"{PACKAGED}#sha256=ab"
    published = "SenseTime/deformable-detr-single-scale"
    assert (
        weights_of("deformable-detr-single-scale-dc5", "deformable-detr-single-scale") == published
    )
    for other in (RANDOM, "s3://bucket/net.pth", "someone/net", "net.safetensors"):
        assert weights_of("deformable-detr", other) == other
    (tmp_path / "packaged").touch()
    assert weights_of("shapes-tiny", "packaged") == "packaged"


@pytest.mark.parametrize("name", ["packaged", "shapes-tiny"])
def test_packaged_weights_by_name_are_those_of_the_package(name: str) -> None:
    own, named = create_model("shapes-tiny", training=True), create_model("shapes-tiny", name)
    assert named.config == own.config
    with pytest.raises(CheckpointError, match="fit no deformable-detr: give --model shapes-tiny"):
        create_model("deformable-detr", name)
    with pytest.raises(UnknownName, match="unknown model 'shapes'"):
        create_model("shapes", name)


def test_a_folder_is_no_weights_and_the_line_says_which_file_may_be(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"are a folder: .*/model\.safetensors"):
        create_model("shapes-tiny", str(tmp_path))
