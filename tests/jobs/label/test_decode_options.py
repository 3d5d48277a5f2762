"""`label --decode gpu`: where it cannot be it is refused, and it is recorded and reported."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.cli import main
from jobs.cluster.request import ClusterRequest
from jobs.label.decode_options import DecodeOptions
from jobs.label.label import label
from jobs.label.options import LabelOptions
from jobs.label.run_record import recorded_command
from jobs.report.reports import report_of
from pipeline.storage.errors import InputError
from tests.jobs.label.test_bits import bits
from tests.jobs.label.test_tile_options import fingerprint_of
from tests.pipeline.stages.test_decode_on_device import as_format, damaged
from tests.support.alone import label_without_ray
from tests.support.labelling import tiny_options


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--device cpu", "--decode gpu --device cpu: leave out one of the two options"),
        ("", "--decode gpu: this machine has no GPU that torch can use; leave the option out"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_in_one_line(
    words: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    command = ["label", str(tmp_path / "in"), str(tmp_path / "out"), "--model", "shapes-tiny"]
    assert main([*command, "--decode", "gpu", *words.split()]) == 2
    error = capsys.readouterr().err
    assert reason in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_models_that_get_images_from_the_host_are_refused() -> None:
    DecodeOptions().check_decode_of("faster-rcnn", is_alone=True)
    with pytest.raises(InputError, match="--decode gpu: faster-rcnn gets its images from CPUs"):
        DecodeOptions(decode="gpu").check_decode_of("faster-rcnn", is_alone=True)


def test_who_decodes_on_gpus_wants_gpus_on_a_cluster_too() -> None:
    options = LabelOptions(input="in", output="out", address="head:6379", decode="gpu")
    request = options.machines()
    assert (request.device, request.gpu_option) == ("cuda", "--decode gpu")
    assert replace(options, num_gpus="2").machines().gpu_option == "--num-gpus 2"
    assert replace(options, decode="cpu").machines().device == "auto"


def test_its_labels_are_others_and_a_recorded_command_says_so(tmp_path: Path, weights: str) -> None:
    options = tiny_options(tmp_path, tmp_path / "out", weights)
    ours = replace(options, decode="gpu", device="auto")
    assert fingerprint_of(ours) != fingerprint_of(options)
    record = {"options": ours.without_secrets("in")}
    assert "--decode gpu" in recorded_command(record)
    record["options"]["decode"] = "cpu"
    assert "--decode" not in recorded_command(record)
    del record["options"]["decode"]  # of an earlier version
    assert "--decode" not in recorded_command(record)


@pytest.mark.slow
def test_a_run_gives_the_labels_of_its_decoder_and_says_what_that_refused(
    tmp_path: Path,
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A CPU stands for the GPU. Its decoder gives equal pixels, so the labels are equal."""
    label_without_ray(children=False, replace=monkeypatch.setattr)
    lake = tmp_path / "lake"
    lake.mkdir()
    for side in (160, 161):
        (lake / f"{side}.jpg").write_bytes(as_format("JPEG", size=(side, 120)))
    (lake / "damaged.jpg").write_bytes(damaged(as_format("JPEG", size=(170, 130))))
    plain = tiny_options(lake, tmp_path / "plain", weights, device="cpu")
    assert label(plain) == 0
    assert "refused" not in capsys.readouterr().err

    def as_asked(options: DecodeOptions, request: ClusterRequest) -> ClusterRequest:
        return request

    monkeypatch.setattr(DecodeOptions, "with_gpus", as_asked)
    monkeypatch.setattr(DecodeOptions, "check_decode", lambda options, device: None)
    ours = replace(plain, output=str(tmp_path / "ours"), decode="gpu")
    assert label(ours) == 0
    line = "the decoder of the GPU refused 1 JPEG: decoded on CPUs instead"
    assert line in capsys.readouterr().err
    assert bits(tmp_path / "ours") == bits(tmp_path / "plain")
    assert report_of(ours.output)["refused_jpegs"] == 1
    assert main(["report", ours.output]) == 0
    assert "refused        1 JPEG by the decoder of the GPU" in capsys.readouterr().out
    (record,) = (tmp_path / "ours").glob("_runs/*/run.json")
    assert json.loads(record.read_text())["options"]["decode"] == "gpu"
    with pytest.raises(InputError, match="weights and threshold, and --decode gpu, another OUTPUT"):
        label(replace(plain, output=ours.output))
