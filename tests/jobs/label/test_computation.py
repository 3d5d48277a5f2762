"""A run computes with one file of weights, on one kind of device and in one precision."""

from pathlib import Path

import pytest

from jobs.cli import main
from jobs.label import label as command
from jobs.label.command import Placed
from jobs.output.catalog import committed_runs
from jobs.output.run_documents import read_document
from model.checkpoint import save_weights
from model.zoo import create_model
from tests.support.samples import write_jpegs

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_jpegs(tmp_path / "photos", "abc")


@pytest.mark.slow
def test_weights_that_are_replaced_after_the_driver_read_them_end_the_run(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights, output = tmp_path / "net.safetensors", tmp_path / "out"
    save_weights(create_model("shapes-tiny", "random", training=True), weights, {})
    start = command._start_ray

    def replace_weights(*arguments: object) -> Placed:
        other = create_model("shapes-tiny", "random", seed=1, training=True)
        save_weights(other, weights, {})
        return start(*arguments)  # type: ignore[arg-type]

    words = ["label", str(photos), str(output), "--model", "shapes-tiny", "--device", "cpu"]
    words += ["--weights", str(weights)]
    monkeypatch.setattr(command, "_start_ray", replace_weights)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "net.safetensors has sha256" in said and "replaced meanwhile" in said, said
    assert "Traceback" not in said and "DamagedCheckpoint" not in said
    assert committed_runs(str(output)) == []
    monkeypatch.undo()
    assert main(words) == 2  # other weights are another command
    assert "--relabel" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_relabels_records_what_it_computes_with(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = ["label", str(photos), str(output), "--model", "shapes-tiny", "--device", "cpu"]
    assert main([*words, "--precision", "fp32"]) == 0
    assert main([*words, "--relabel", "--precision", "bf16"]) == 0
    (run,) = committed_runs(str(output))
    computation = read_document(str(output), run["run_id"], "run.json")["computation"]
    assert (computation["device"], computation["precision"]) == ("cpu", "bf16")
    assert f"bf16 on cpu ({computation['hardware']})" in capsys.readouterr().err
