"""The command line as a shell sees it: exit codes, and one line for each error."""

import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from jobs import cli
from jobs.bench.measure import Wrong
from jobs.cli import DEBUG, exit_code_of, main
from jobs.output.errors import CommitUnknown, DamagedOutput
from model.errors import CheckpointError, CheckpointUnavailable, DamagedCheckpoint, UnknownName
from pipeline.storage.errors import CommandFailed, InputError, StorageUnavailable

ROOT = Path(__file__).parents[3]


def test_a_reader_that_stops_early_is_no_error() -> None:
    """`head` stops like this in `detr-batch prices | head`."""
    code = "import sys; from jobs.cli import main; sys.exit(main(['prices']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()


@pytest.mark.parametrize("kind", [InputError, UnknownName, CheckpointError, ImportError])
def test_bad_arguments_are_exit_code_2(kind: type[Exception]) -> None:
    assert exit_code_of(kind("no")) == 2


@pytest.mark.parametrize(
    "kind",
    [
        ValueError,  # raised by a library that read something damaged
        KeyError,
        OSError,
        DamagedOutput,
        CommitUnknown,
        CommandFailed,
        StorageUnavailable,
        DamagedCheckpoint,
        CheckpointUnavailable,
        Wrong,
    ],
)
def test_all_other_errors_are_exit_code_1_which_schedulers_try_again(kind: type[Exception]) -> None:
    assert exit_code_of(kind("no")) == 1


@pytest.fixture
def broken_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the command `prices` a bug, whose error message holds a secret."""

    def fail(_: Any) -> int:
        raise KeyError("s3://user:5ecret@bucket")

    monkeypatch.setattr(cli.models, "_prices", fail)


@pytest.mark.usefixtures("broken_command")
def test_a_bug_is_reported_in_one_line_that_names_debug(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices"]) == 1
    assert capsys.readouterr().err == (
        "detr-batch: internal error: KeyError: 's3://bucket' (--debug shows where it happened)\n"
    )


@pytest.mark.parametrize(
    ("cause", "hint"), [(KeyError("x"), True), (OSError("x"), False), (StorageUnavailable(), False)]
)
def test_a_run_that_fails_by_a_bug_names_debug(
    cause: Exception,
    hint: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: Any) -> int:
        raise CommandFailed("the run failed") from cause

    monkeypatch.setattr(cli.models, "_prices", fail)
    assert main(["prices"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("detr-batch: the run failed")
    assert (DEBUG in printed) == hint


@pytest.mark.usefixtures("broken_command")
@pytest.mark.parametrize("arguments", [[DEBUG, "prices"], ["prices", DEBUG]])
def test_debug_shows_the_traceback(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert printed.endswith("\ndetr-batch: internal error: KeyError: 's3://bucket'\n")
    assert "5ecret" not in printed


def test_debug_shows_the_traceback_of_a_refused_argument_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["query", DEBUG]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["query"]) == 2
    assert capsys.readouterr().err == (
        "detr-batch: query needs OUTPUT and SQL; --examples prints some\n"
    )


@pytest.mark.parametrize(
    ("damage", "code"), [(b"", 1), (b"no weights", 1), (None, 2)], ids=["cut", "other", "none"]
)
def test_damaged_weights_are_not_a_bad_argument(
    damage: bytes | None, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.safetensors"
    if damage is not None:
        weights.write_bytes(damage)
    arguments = ["label", str(tmp_path), str(tmp_path / "out"), "--model", "shapes-tiny"]
    assert main([*arguments, "--weights", str(weights)]) == code
    printed = capsys.readouterr().err
    assert str(weights) in printed
    assert DEBUG not in printed


def test_an_unknown_model_is_a_bad_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "in", "out", "--model", "moon"]) == 2
    assert "choose one of deformable-detr" in capsys.readouterr().err


def test_the_command_line_imports_no_large_package() -> None:
    code = (
        "import sys, jobs.cli; jobs.cli.parser(); "
        "print({'torch', 'ray', 'pyarrow', 'numpy', 'fsspec', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (
            "label a b --score-treshold 0.4",
            "label: unrecognized arguments: --score-treshold 0.4: did you mean --score-threshold?",
        ),
        ("label a b --score-treshhold=0.4", "did you mean --score-threshold?"),
        ("label a b --min-score 0.4", "did you mean --score-threshold?"),
        ("serve --conf=0.4", "did you mean --score-threshold?"),
        ("export a b --to yolo --score-threshold 0.4", "did you mean --min-score?"),
        ("export a b --to yolo --conf 0.4", "did you mean --min-score?"),
        (
            "label a b c",
            "label: unrecognized arguments: c: of arguments without -- it takes 2 (put one with "
            "blanks, * or ? in quotes) (see detr-batch label --help)",
        ),
        ("query a SELECT 1", "it takes 2 (put one with blanks, * or ? in quotes)"),
        ("prices 5", "unrecognized arguments: 5: of arguments without -- it takes none (see"),
        ("lable a b", "did you mean label?"),
        ("export a b --to pascal", "export: argument --to: invalid choice: 'pascal': did you mean"),
        ("export a b --to VOC2007", "did you mean voc?"),
        ("export a b --to label-studio", "did you mean labelstudio?"),
        ("export a b --to ultralytics", "did you mean yolo?"),
        ("export a b --to yolov8", "did you mean yolo?"),
        ("export a b --to COCO_JSON", "did you mean coco?"),
        ("export a b --to tiff", "invalid choice: 'tiff' (choose from"),
    ],
)
def test_a_misspelt_word_names_the_nearest(
    words: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words.split())
    printed = capsys.readouterr().err
    assert end.value.code == 2 and hint in printed and printed.count("\n") == 1


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"detr-batch {version('detr-batch')}\n"


def test_a_closed_stdout_is_no_error() -> None:
    code = "import sys; from jobs.cli import main; sys.exit(main(['prices']))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} >&-"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
