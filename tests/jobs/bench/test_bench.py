"""Benchmarks check results before they time them, and store what they measure."""

import csv
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from jobs.bench import launches as bench_launches
from jobs.bench import model as bench_model
from jobs.bench import op as bench_op
from jobs.bench import pipeline as bench_pipeline
from jobs.bench import scale
from jobs.bench.detectors import OPENVINO, PEER, Subject, Worker, error_of_answer
from jobs.bench.measure import interleaved
from jobs.bench.plot import newest
from jobs.cli import main
from model.ops import Implementation, launches
from model.ops.launches import Launch
from model.ops.ways import FP32, HALF
from pipeline.schema import Receipt


@pytest.fixture
def small_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = ((6, 5), (3, 2))
    monkeypatch.setattr(bench_op, "LEVELS", levels)
    monkeypatch.setattr(bench_op, "ROWS", sum(height * width for height, width in levels))
    monkeypatch.setattr(bench_op, "CASES", {"encoder": (1, 36), "decoder": (2, 7)})


@pytest.mark.slow
def test_op_times_every_implementation_of_this_machine(
    small_inputs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.csv"
    command = ["bench", "op", "--precision", "fp32", "--seconds", "0.1", "--results", str(results)]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["measurements"]
    assert main(command) == 0
    assert "x transformers" in capsys.readouterr().out
    with results.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(printed)  # the rows of the second run were added
    subjects = {row["subject"] for row in rows}
    assert subjects >= {"reference", "grid_sample", "embedding_bag", "transformers"}
    assert all(float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"]) for row in rows)
    assert all(float(row["error"]) < 1e-5 and row["torch"] == torch.__version__ for row in rows)


def test_nothing_is_timed_where_a_result_is_wrong(
    small_inputs: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compute = bench_op._ours

    def compute_wrong(tensors: bench_op.Inputs, implementation: Implementation) -> torch.Tensor:
        return compute(tensors, implementation) + (implementation == "grid_sample")

    monkeypatch.setattr(bench_op, "_ours", compute_wrong)
    results = tmp_path / "results.csv"
    command = ["bench", "op", "--precision", "fp32", "--seconds", "0.1", "--results", str(results)]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "grid_sample is wrong by" in printed.err and not printed.out
    assert not results.exists()


def test_the_plot_shows_the_newest_row_of_each_subject(
    small_inputs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, plot = tmp_path / "results.csv", tmp_path / "plot.svg"
    command = ["bench", "op", "--precision", "fp32", "--seconds", "0.1", "--results", str(results)]
    assert main(command) == 0 and main(command) == 0
    for case in newest(results).values():
        subjects = [row["subject"] for row in case]
        assert len(subjects) == len(set(subjects)) and "transformers" in subjects
    assert main(["bench", "plot", str(plot), "--results", str(results)]) == 0
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    capsys.readouterr()
    assert main(["bench", "plot", str(plot.with_suffix(".doc")), "--results", str(results)]) == 2
    assert "doc" in capsys.readouterr().err
    assert main(["bench", "plot", str(plot), "--results", str(tmp_path / "none.csv")]) == 2
    assert "none.csv does not exist" in capsys.readouterr().err


def test_subjects_take_turns() -> None:
    order: list[str] = []

    def subject(name: str) -> float:
        order.append(name)
        return 0.01

    took = interleaved({name: partial(subject, name) for name in "abc"}, 0.295)
    assert {name: len(times) for name, times in took.items()} == {"a": 10, "b": 10, "c": 10}
    assert all(set(order[i : i + 3]) == set("abc") for i in range(0, 30, 3))


@pytest.mark.slow
def test_the_packaged_model_is_measured_with_its_ap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_model, "AP_SCENES", 4)
    results = tmp_path / "results.csv"
    command = ["bench", "model", "--model", "shapes-tiny", "--size", "96x128", "--json"]
    command += ["--batch-size", "2", "--precision", "bf16", "--seconds", "0.1"]
    assert main([*command, "--results", str(results)]) == 0
    rows = json.loads(capsys.readouterr().out)["measurements"]
    assert [(row["batch"], row["precision"]) for row in rows] == [(2, "fp32"), (2, "bf16")]
    assert all(row["ap"] > 0.6 and row["peak_memory_mib"] > 100 for row in rows)
    with results.open() as file:
        assert len(list(csv.DictReader(file))) == 2
    results.write_text("date,speed\n")
    assert main([*command, "--results", str(results)]) == 2
    assert "other columns" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("corners", [FP32, HALF])
def test_launches_are_chosen_by_time_and_stored(
    corners: str, small_inputs: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a GPU the kernels run in Triton's interpreter, whose times say nothing of a GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    candidates = [Launch(4, 1), Launch(32, 1)]
    best, medians = bench_launches.fastest("decoder", corners, device, "fp16", 0.1, candidates)
    assert set(medians) == set(candidates) and medians[best] == min(medians.values())
    table = tmp_path / "launches.json"
    shutil.copy(launches.TABLE, table)
    chosen = {launches.FEW: Launch(8, 1), launches.launch_name(launches.MANY, corners): best}
    launches.add_to_table("9.0", chosen, table)
    assert launches.read_table(table) == {**launches.read_table(), "9.0": chosen}
    command = ["bench", "launches", "--table", str(table), "--device", "cpu"]
    assert main(command) == 2
    assert "pass --device cuda" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "deformable-detr,nano"], "choose one of deformable-detr,"),
        (["--size", "800"], "give rows x columns"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--batch-size", "1,two"], "--batch-size must be at least 1"),
        (["--device", "cuda:99"], "--device cuda:99: it cannot be used here"),
    ],
)
def test_arguments_that_cannot_be_measured_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "model", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_pipeline_with_other_results_is_not_timed() -> None:
    expected = {"a": 0.5, "b": 0.5625, "c": 0.75}
    assert bench_pipeline.difference(expected, expected) == 0
    swapped = {**expected, "a": expected["b"], "b": expected["a"]}
    assert bench_pipeline.difference(swapped, expected) == 0.25
    shifted = {name: score + 0.125 for name, score in expected.items()}
    assert bench_pipeline.difference(shifted, expected) > bench_pipeline.TOLERANCE
    with pytest.raises(RuntimeError, match=r"only one of the two labelled \['b'\]"):
        bench_pipeline.difference({"a": 0.5, "c": 0.75}, expected)


@pytest.mark.slow
def test_pipeline_beside_a_plain_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_pipeline, "SIZE", (320, 200))
    results = tmp_path / "results.csv"
    command = ["bench", "pipeline", "--model", "deformable-detr-single-scale", "--images", "4"]
    command += ["--precision", "fp32", "--seconds", "1", "--results", str(results), "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    ours, plain = printed["measurements"]
    assert ours["images_per_second"] > 0 and plain["images_per_second"] > 0
    assert ours["error"] < 0.01
    assert printed["report"]["ok"] == 4


@pytest.mark.slow
def test_model_beside_transformers(tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    command = ["bench", "model", "--model", "deformable-detr-single-scale", "--size", "96x128"]
    command += ["--precision", "fp32", "--seconds", "1", "--results", str(results)]
    assert main(command) == 0
    with results.open() as file:
        rows = {row["subject"]: row for row in csv.DictReader(file)}
    assert float(rows["detr-batch"]["error"]) < 1e-3
    assert float(rows["transformers"]["error"]) == 0
    assert int(rows["detr-batch"]["peak_memory_mib"]) > 100


@pytest.mark.parametrize("installed", [(), ("openvino",), ("openvino", "nncf")])
def test_peers_are_those_that_are_installed(
    installed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_model, "find_spec", lambda name: name in installed or None)
    for precision in ("fp32", "bf16"):
        found = bench_model.ways("deformable-detr", precision, "cpu")
        of_openvino = [way[1] for way in found if way[0] == OPENVINO]
        assert of_openvino == [precision, "int8"][: len(installed)]
    assert not any(way[0] == OPENVINO for way in bench_model.ways("shapes-tiny", "fp32", "cpu"))


@pytest.mark.slow
def test_openvino_computes_in_the_precision_that_is_timed() -> None:
    pytest.importorskip("openvino", reason="a peer of the bench")
    pytest.importorskip("nncf", reason="int8 of that peer")
    model, ways = "deformable-detr-single-scale", [(PEER, "fp32"), (OPENVINO, "fp32")]
    workers = [
        Worker(Subject(*way, model, None, (96, 128), 1, "cpu"))
        for way in (*ways, (OPENVINO, "int8"))
    ]
    try:
        expected, *found = (worker.warm_up() for worker in workers)
    finally:
        for worker in workers:
            worker.stop()
    fp32, int8 = (error_of_answer(answer, expected, model) for answer in found)
    assert fp32 < 1e-3 < int8 < 0.5


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_rate_of_devices_that_end_together_is_their_sum(devices: int) -> None:
    ends = np.repeat(np.arange(160) * 0.25, devices)
    rate = scale.steady(np.random.default_rng(0).permutation(ends))
    assert rate == pytest.approx(devices * 8 / 2.0, rel=0.02)


@pytest.mark.parametrize(("staged", "planned"), [(80, 88), (88, 80), (72, 80)])
def test_runs_that_lose_or_double_an_image_give_no_rate(staged: int, planned: int) -> None:
    found = [Receipt("b", ("s",), images=8, detections=0) for _ in range(10)]
    scale.check_whole(found, 80, 80)
    with pytest.raises(RuntimeError, match=f"of {planned} images 80 were told of"):
        scale.check_whole(found, staged, planned)


@pytest.mark.slow
def test_two_devices_are_nearly_twice_as_fast_as_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.cli", "bench", "scale", "--detectors", "1,2", "--json"]
    command += ["--device-seconds", "0.1", "--seconds", "12", "--results", str(tmp_path / "r.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rates = [
        median(sample["images_per_second"] for sample in scaled["samples"])
        for scaled in json.loads(done.stdout)
    ]
    assert 8 < rates[0] < 10.1  # one device can do at most ten a second
    assert rates[0] * 1.6 < rates[1] < 20.2
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 3
