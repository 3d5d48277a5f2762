"""The figures that the list of models states are right."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.cli import main
from model.deformable_detr import DeformableDetr
from model.zoo import MODELS, NamedModel


@pytest.mark.parametrize(
    "named",
    [
        pytest.param(named, marks=() if name == "shapes-tiny" else pytest.mark.slow, id=name)
        for name, named in MODELS.items()
    ],
)
def test_gmacs_are_what_torch_counts(named: NamedModel) -> None:
    config = named.config()
    net = DeformableDetr(config).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, *config.resize.target_size(480, 640)))
    assert counter.get_total_flops() / 2e9 == pytest.approx(named.gmacs, abs=0.05)


def test_models_command_lists_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(MODELS)
    assert all("GMACs" in line and "M parameters" in line for line in lines)
