"""`bench model --sizes mix` and `bench pipeline --photos mix`, small, on a CPU."""

import csv
import json
from pathlib import Path

import pytest

from jobs.bench import measure
from jobs.bench.measure import RESULTS, append_rows
from jobs.cli import main

MIX_MODEL = ["bench", "model", "--sizes", "mix", "--model", "shapes-tiny"]
MIX_PIPELINE = ["bench", "pipeline", "--photos", "mix", "--model", "shapes-tiny"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*MIX_MODEL, "--size", "800x1066"], "--size is for --sizes one"),
        ([*MIX_MODEL, "--batch-size", "8"], "--batch-size with --sizes mix is for GPUs"),
        ([*MIX_MODEL, "--images", "0"], "--images must be at least 1"),
        ([*MIX_MODEL, "--model", "nano"], "choose one of deformable-detr,"),
        ([*MIX_MODEL, "--device", "cuda:99"], "--device cuda:99: it cannot be used here"),
        (["bench", "model", "--images", "8"], "--images is for --sizes mix"),
        ([*MIX_PIPELINE, "--images", "0"], "--images must be at least 1"),
        ([*MIX_PIPELINE, "--model", "nano"], "choose one of deformable-detr,"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_rows_of_before_and_rows_of_a_mix_share_a_file(tmp_path: Path) -> None:
    """The figures of a mix are in `details`, so that the columns are those of earlier versions."""
    results = tmp_path / "results.csv"
    results.write_text("".join(RESULTS.read_text().splitlines(keepends=True)[:3]))
    details = {"mean_fill": 0.97, "canvas_per_pixel": 1.02, "batches": 206, "forms": 21}
    with results.open() as file:
        old = list(csv.DictReader(file))
    assert append_rows([{**old[0], "case": "a mix", "details": details}], results) == 1
    with results.open() as file:
        *before, added = csv.DictReader(file)
    assert before == old and json.loads(added["details"]) == details


@pytest.mark.slow
def test_a_model_is_timed_on_a_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.csv"
    command = [*MIX_MODEL, "--images", "4", "--precision", "fp32", "--seconds", "0.1"]
    assert main([*command, "--results", str(results)]) == 0
    assert "images/s, fill 100%, 1.000 of the images' pixels" in capsys.readouterr().out
    with results.open() as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == "shapes-tiny, 4 images of COCO's sizes" and row["batch"] == "1"
    assert float(row["error"]) < 1e-3 and int(row["peak_memory_mib"]) > 100
    rate = 4e3 / float(row["p50_ms"])
    assert float(row["images_per_second"]) == pytest.approx(rate, rel=1e-3)
    details = json.loads(row["details"])
    assert (details["mean_fill"], details["canvas_per_pixel"], details["batches"]) == (1, 1, 4)
    assert details["threads"] == 1


@pytest.mark.slow
def test_label_is_timed_on_a_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "FEWEST_ROUNDS", 1)
    results = tmp_path / "results.csv"
    command = [*MIX_PIPELINE, "--images", "4", "--precision", "fp32", "--seconds", "0.1", "--json"]
    assert main([*command, "--results", str(results)]) == 0
    printed = json.loads(capsys.readouterr().out)
    (row,) = printed["measurements"]
    assert row["images_per_second"] > 0 and row["error"] < 1e-3
    assert printed["report"]["ok"] == 4
    details = row["details"]
    assert (details["mean_fill"], details["canvas_per_pixel"], details["batches"]) == (1, 1, 4)
    assert "first block" in details["startup_parts"]
    with results.open() as file:
        assert len(list(csv.DictReader(file))) == 1
