"""`detr-batch bench gpu`: its journal, its tables, and the whole command, small, on a CPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.bench.gpu import STEPS
from jobs.bench.gpu.choices import _choose_corners
from jobs.bench.gpu.collect import Tables, collect
from jobs.bench.gpu.context import Context
from jobs.bench.gpu.environment import describe_environment
from jobs.bench.gpu.gates import Gate
from jobs.bench.gpu.journal import (
    BEGUN,
    CHOICE,
    CRASHED,
    CUT,
    END,
    ENVIRONMENT,
    FAILED,
    LEFT_OUT,
    NAME,
    REFUSED,
    TIMING,
    VALUE,
    VERDICT,
    Journal,
    Record,
)
from jobs.bench.gpu.parts import PARTS, Traffic, measure_parts
from jobs.cli import main
from model.ops import launches, ways
from model.ops.launches import Launch
from model.zoo import create_deformable_detr
from pipeline.storage.errors import CommandFailed
from tests.support.parameters import others_slow

SECONDS = 1800.0  # for all steps; on two quiet cores they take two minutes
ROW: dict[str, Any] = {
    "benchmark": "gpu rates",
    "case": "deformable-detr, bf16, exact, batch 8",
    "subject": "detr-batch",
    "batch": 8,
    "precision": "bf16",
    "p20_ms": 14.0,
    "p50_ms": 15.0,
    "p80_ms": 16.0,
    "images_per_second": 533.3,
    "peak_memory_mib": 2000,
    "error": 0.0,
    "ap": None,
    "details": {"share_of_bound": 0.5, "parts": {}},
}


def run_gpu(out: Path, *options: str, planted: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command, small, on a CPU; each of its processes first runs the code `planted`."""
    folder = out.parent / "planted"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(planted)
    command = [sys.executable, "-m", "jobs.cli", "bench", "gpu", "--out", str(out), "--tiny"]
    command += ["--device", "cpu", *options]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def records_of(out: Path, step: str, *kinds: str) -> list[Record]:
    found = [record for record in Journal(out).records() if record["step"] == step]
    return [record for record in found if not kinds or record["kind"] in kinds]


def test_a_journal_knows_what_is_done_and_what_was_under_way(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.finished_cases("rates") == set()
    journal.write("rates", "a", BEGUN)
    assert journal.case_under_way("rates") == "a"
    journal.write("rates", "a", TIMING, row=ROW)
    for case, kind in (("b", FAILED), ("c", LEFT_OUT), ("d", CRASHED), ("e", BEGUN)):
        journal.write("rates", case, kind)
    assert journal.finished_cases("rates") == {"a", "c", "d"}
    assert journal.case_under_way("rates") == "e"
    assert journal.finished_steps() == set() == journal.finished_cases("mix")
    journal.write("rates", "", END)
    assert journal.finished_steps() == {"rates"}


def test_a_damaged_journal_is_named_with_its_line(tmp_path: Path) -> None:
    Journal(tmp_path).write("rates", "a", BEGUN)
    with (tmp_path / NAME).open("a") as file:
        file.write('{"step": "rates", "ca')
    with pytest.raises(CommandFailed, match=f"line 2 of .*{NAME} is no record"):
        list(Journal(tmp_path).records())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --out DIR"),
        (["--out", "x", "--collect", "y"], "give either --out DIR"),
        (["--out", "x", "--device", "cpu", "--steps", "rates,speed"], "--steps speed"),
        (["--out", "x", "--device", "cpu", "--seconds", "0"], "--seconds 0"),
        (["--out", "x", "--device", "cuda:99"], "--device cpu --tiny"),
        (["--collect", "x"], "there is no gpu.jsonl"),
    ],
)
def test_wrong_options_are_refused(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "gpu", *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def write_made_up_journal(folder: Path, **environment: Any) -> Journal:
    """Write the journal of a made-up GPU, with a timing, a failure and two choices."""
    folder.mkdir()
    journal = Journal(folder)
    found = describe_environment("cpu") | {"tiny": False} | environment
    journal.write("rates", "", ENVIRONMENT, **found)
    journal.write("rates", ROW["case"], TIMING, row=ROW)
    journal.write("rates", "another", FAILED, reason="RuntimeError: no kernel")
    fields = {"capability": "8.6", "seconds": {"a": 1.0, "b": 2.0}}
    launch = {"block": 8, "warps": 2}
    choices: list[dict[str, Any]] = [
        {"table": "launches", "what": launches.MANY, "chosen": launch},
        {"table": "ways", "what": ways.RESIDUAL, "chosen": ways.KERNEL},
    ]
    for choice in choices:
        journal.write("choices", choice["what"], CHOICE, **choice, **fields)
    return journal


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """Copies of the project's tables of choices, and a new table of results."""
    found = Tables(*(tmp_path / name for name in ("rows.csv", "launches.json", "ways.json")))
    found.launches.write_text(launches.TABLE.read_text())
    found.ways.write_text(ways.TABLE.read_text())
    return found


def test_results_are_added_once_and_choices_go_into_the_tables_of_the_code(
    tables: Tables, tmp_path: Path
) -> None:
    write_made_up_journal(tmp_path / "out")
    before = launches.read_table(tables.launches)
    summary = collect(tmp_path / "out", tables)
    assert "533.3 images/s" in summary and "another: failed. RuntimeError: no kernel" in summary
    assert "1 rows added" in summary and "8.6" in summary
    assert tables.results is not None
    header, row = tables.results.read_text().splitlines()
    assert header.endswith(",details") and row.count('""parts"":{}') == 1
    after = launches.read_table(tables.launches)
    assert after == {**before, "8.6": {**before[launches.ANY], launches.MANY: Launch(8, 2)}}
    assert ways.read_ways(tables.ways)["8.6"] == {ways.RESIDUAL: ways.KERNEL}
    assert "0 rows added" in collect(tmp_path / "out", tables)
    assert len(tables.results.read_text().splitlines()) == 2


def test_a_copy_without_git_is_recognised_by_its_code(tables: Tables, tmp_path: Path) -> None:
    row = describe_environment("cpu")["row"] | {"git_sha": "not a checkout"}
    write_made_up_journal(tmp_path / "same", row=row)
    write_made_up_journal(tmp_path / "other", row=row, code="0" * 16)
    assert "name no commit" not in collect(tmp_path / "same", tables)
    assert "name no commit" in collect(tmp_path / "other", tables)
    assert tables.results is not None
    ours, theirs = (line.split(",")[1] for line in tables.results.read_text().splitlines()[1:])
    assert ours == describe_environment("cpu")["row"]["git_sha"] and theirs == "not a checkout"


def test_results_of_a_tiny_run_are_not_stored(tables: Tables, tmp_path: Path) -> None:
    write_made_up_journal(tmp_path / "out", tiny=True)
    summary = collect(tmp_path / "out", Tables(None, tables.launches, tables.ways))
    assert "no row is kept" in summary
    assert tables.ways.read_text() == ways.TABLE.read_text()


def test_corners_are_summed_in_the_way_whose_best_launches_take_the_least_time(
    tables: Tables, tmp_path: Path
) -> None:
    context = Context("choices", tmp_path, "cpu", tiny=True, deadline=time.monotonic() + SECONDS)
    context.write("", ENVIRONMENT, **describe_environment("cpu"), tiny=True)
    seconds = {  # of each launch that was tried
        launches.launch_name(launches.FEW, ways.FP32): {"a": 1.0, "b": 2.0},
        launches.launch_name(launches.MANY, ways.FP32): {"a": 9.0, "b": 8.0},
        launches.launch_name(launches.FEW, ways.HALF): {"a": 2.0, "b": 3.0},
        launches.launch_name(launches.MANY, ways.HALF): {"a": 5.0, "b": 7.0},
    }
    fields = {"table": "launches", "capability": "8.6", "chosen": {"block": 8, "warps": 1}}
    for what, took in list(seconds.items())[:3]:
        context.write(what, CHOICE, what=what, seconds=took, **fields)
    _choose_corners(context, "8.6")
    collect(tmp_path, tables)
    assert ways.read_ways(tables.ways)["8.6"] == {ways.CORNERS: ways.FP32}
    what, took = list(seconds.items())[3]
    context.write(what, CHOICE, what=what, seconds=took, **fields)
    _choose_corners(context, "8.6")
    collect(tmp_path, tables)
    assert ways.read_ways(tables.ways)["8.6"] == {ways.CORNERS: ways.HALF}
    *_, last = records_of(tmp_path, "choices", CHOICE)
    assert last["seconds"] == {ways.FP32: 9.0, ways.HALF: 7.0}


def test_unknown_ways_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "ways.json"
    table.write_text('{"9.0": {"' + ways.RESIDUAL + '": "magic"}}')
    with pytest.raises(ValueError, match="no way 'magic'"):
        ways.read_ways(table)


@pytest.mark.parametrize("model", others_slow(["shapes-tiny", "deformable-detr-single-scale"]))
def test_parts_count_what_torch_counts(model: str) -> None:
    """Torch's own counter, the reference, knows all operations of a model for training."""
    net = create_deformable_detr(model, "random", training=True).requires_grad_(False)
    pixels = torch.zeros(2, 3, 96, 128)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            net(pixels)
        with Traffic([]) as traffic:
            net(pixels)
        prepared = create_deformable_detr(model, "random")
        with Traffic([]) as fused:
            prepared(pixels)
    found = sum(operations for _, _, operations, _ in traffic.found)
    assert found == pytest.approx(counter.get_total_flops())
    # A prepared model of one stage has computed the first self-attention of the queries before.
    width, queries, batch = net.config.d_model, net.config.num_queries, 2
    beforehand = batch * queries * (8 * width**2 + 4 * queries * width)
    expected = found - (0 if net.config.two_stage else beforehand)
    assert sum(operations for _, _, operations, _ in fused.found) == pytest.approx(expected)


def test_parts_have_times_and_bounds() -> None:
    net = create_deformable_detr("shapes-tiny", "random")
    pixels = torch.zeros(1, 3, 96, 128)
    ceilings = {"copy": 10.0, "bf16": 1.0, "fp16": 1.0, "fp32": 1.0}
    with torch.inference_mode():
        parts = measure_parts(net, lambda: net(pixels), "cpu", ceilings)
    assert list(parts) == list(PARTS)
    for name in ("stem", "layer1", "layer4", "pyramid", "encoder's products", "norms", "heads"):
        part = parts[name]
        assert part.milliseconds > 0 and part.bound_ms > 0, name
        longer = max(part.compute_ms, part.memory_ms)
        assert longer <= part.bound_ms <= part.compute_ms + part.memory_ms
    assert "pyramid" not in vars(net) and "forward" not in vars(net.transformer.encoder)


@pytest.mark.slow
def test_all_steps_answer_and_a_second_run_skips_them(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_gpu(out, "--seconds", str(SECONDS))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"detr-batch bench gpu --collect {out}\n"
    for step in STEPS:
        first, *_, last = records_of(out, step)
        assert (first["kind"], last["kind"]) == (ENVIRONMENT, END), step
        assert not records_of(out, step, FAILED, CRASHED, CUT, REFUSED), step
    values = {record["case"]: record["value"] for record in records_of(out, "ceilings", VALUE)}
    assert set(values) == {"copy", "bf16", "fp16", "fp32"} and min(values.values()) > 0
    verdicts = records_of(out, "gates", VERDICT)
    assert len(verdicts) == 17 and all(verdict["right"] for verdict in verdicts)
    assert all(type(record["same_bits"]) is bool for record in records_of(out, "bits", VERDICT))
    assert records_of(out, "bits", VERDICT)
    rows = {step: [r["row"] for r in records_of(out, step, TIMING)] for step in STEPS}
    assert all(set(row) == set(ROW) for found in rows.values() for row in found)
    for step in ("rates", "mix", "peers", "choices", "flow"):
        assert rows[step] and all(row["images_per_second"] > 0 for row in rows[step]), step
    for row in rows["rates"]:
        assert row["details"]["share_of_bound"] > 0
        if row["batch"] == 2:
            assert set(row["details"]["parts"]) == set(PARTS)
            assert sum(part["share"] for part in row["details"]["parts"].values()) > 0.99
    for row in rows["mix"]:
        assert 0 < row["details"]["mean_fill"] <= 1 <= row["details"]["canvas_per_pixel"]
    assert {row["subject"] for row in rows["peers"]} > {"detr-batch", "transformers"}
    prepared = ["decode", "decode and resize", "read the header"]
    assert [row["subject"] for row in rows["flow"][:3]] == prepared
    for row in rows["flow"][3:]:
        assert 0 < row["details"]["device_share"] <= 1
        assert "first block" in row["details"]["startup_parts"]
    check_collected(out, tmp_path / "rows.csv", sum(map(len, rows.values())))
    size = (out / NAME).stat().st_size
    again = run_gpu(out, "--seconds", str(SECONDS))
    assert again.returncode == 0 and again.stderr.count("has it already") == len(STEPS)
    assert (out / NAME).stat().st_size == size


def check_collected(out: Path, results: Path, rows: int) -> None:
    command = ["bench", "gpu", "--collect", str(out), "--results", str(results)]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.isupper()] == [
        *(step.upper() for step in STEPS),
        "NOT MEASURED",  # fp8, and JPEGs decoded on a GPU
    ]
    assert len(results.read_text().splitlines()) == rows + 1


HANGS = """
from jobs.bench.gpu import ceilings
measure = ceilings._measure
def hang(context, name):
    if name == "fp32":
        import subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)", "MARK"])
        time.sleep(99)
    measure(context, name)
ceilings._measure = hang
"""


@pytest.mark.slow
def test_a_step_that_hangs_is_stopped_and_resumed_later(tmp_path: Path) -> None:
    out = tmp_path / "out"
    began = time.monotonic()
    done = run_gpu(
        out, "--steps", "ceilings", "--seconds", "25", planted=HANGS.replace("MARK", str(out))
    )
    assert done.returncode == 1 and time.monotonic() - began < 60
    assert "--steps ceilings" in done.stderr
    assert len(records_of(out, "ceilings", VALUE)) == 3
    assert len(records_of(out, "ceilings", CUT)) == 1
    left = [p for p in psutil.process_iter(["cmdline"]) if str(out) in (p.info["cmdline"] or [])]
    assert not left
    assert run_gpu(out, "--steps", "ceilings").returncode == 0
    cases = [record["case"] for record in records_of(out, "ceilings", VALUE)]
    assert cases == ["copy", "bf16", "fp16", "fp32"]  # each case once


CRASHES = """
import os
from jobs.bench.gpu import ceilings
measure = ceilings._measure
def crash(context, name):
    os._exit(7) if name == "bf16" else measure(context, name)
ceilings._measure = crash
"""


@pytest.mark.slow
def test_a_case_that_ends_its_process_is_skipped_later(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_gpu(out, "--steps", "ceilings", planted=CRASHES)
    assert done.returncode == 0, done.stderr
    (crashed,) = records_of(out, "ceilings", CRASHED)
    assert crashed["case"] == "bf16" and "ended with 7" in crashed["reason"]
    cases = [record["case"] for record in records_of(out, "ceilings", VALUE)]
    assert cases == ["copy", "fp16", "fp32"]


WRONG = """
from model.ops import fused_cpu
right = fused_cpu.fused_ms_deform_attn_cpu
def wrong(value, *rest):
    return right(value, *rest).roll(1, dims=1)
fused_cpu.fused_ms_deform_attn_cpu = wrong
"""


@pytest.mark.slow
def test_a_wrong_kernel_fails_its_gate_and_is_not_timed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    steps = ("--steps", "gates,rates,mix,peers,choices", "--seconds", str(SECONDS))
    done = run_gpu(out, *steps, planted=WRONG)
    assert done.returncode == 0, done.stderr
    gates = {r["case"]: r["right"] for r in records_of(out, "gates", VERDICT)}
    del gates["tests of the model"]  # the tests that run without a GPU do not use this kernel
    assert len(gates) == 16 and not any(gates.values()), gates
    for step in ("rates", "mix", "peers", "choices"):
        assert not records_of(out, step, TIMING), step
        assert records_of(out, step, REFUSED), step
    summary = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "bench", "gpu", "--collect", str(out)],
        capture_output=True,
        text=True,
    ).stdout
    assert f"WRONG  {Gate('shapes-tiny', 'fp32', False)}" in summary
    assert summary.count("wrong, so not timed") > 5


def test_records_are_lines_of_json(tmp_path: Path) -> None:
    Journal(tmp_path).write("flow", "one size", LEFT_OUT, reason="no Ray\nhere")
    (line,) = (tmp_path / NAME).read_text().splitlines()
    assert json.loads(line)["reason"] == "no Ray\nhere"
