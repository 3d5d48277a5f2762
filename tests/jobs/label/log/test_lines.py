"""Each line of `label` has the time in a log: errors, refused arguments and warnings too."""

import ast
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from jobs.label.log.lines import print_line, print_start, without_time
from pipeline.storage.errors import CommandFailed, InputError

ROOT = Path(__file__).parents[4]
TIME = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"


def test_lines_on_a_terminal_have_no_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_start("s3://key:secret@b/in", "out")
    assert re.fullmatch(f"{TIME} label s3://\\S+ out\n", said := capsys.readouterr().err)
    assert "secret" not in said
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    print_start("in", "out")
    print_line("a line")
    assert main(["label", "in", "out", "--limit", "0"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "a line" and second.startswith("detr-batch: --limit")


@pytest.mark.parametrize(
    ("end", "line"),
    [
        (InputError("INPUT is gone"), "detr-batch: INPUT is gone"),
        (CommandFailed("no space"), "detr-batch: no space"),
        (KeyError("x"), "detr-batch: internal error: KeyError: 'x' .--debug shows where .*"),
        (KeyboardInterrupt(), "detr-batch: interrupted; the same command takes it up again"),
        (SystemExit(15), "detr-batch: ended; the same command takes it up again"),
    ],
)
def test_the_line_of_an_error_has_the_time(
    end: BaseException,
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> int:
        raise end

    monkeypatch.setattr("jobs.label.label.label", fail)
    assert main(["label", str(tmp_path), str(tmp_path / "out")]) in (1, 2)
    assert re.fullmatch(f"{TIME} {line}\n", printed := capsys.readouterr().err)
    assert re.fullmatch(line, without_time(printed).strip())


def test_refused_arguments_have_the_time_and_lines_of_other_commands_have_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        main(["label", "in", "out", "--limmit", "5"])
    assert re.match(f"{TIME} detr-batch label: unrecognized", capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main(["runs"])
    assert main(["runs", str(tmp_path / "absent")]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith("detr-batch")


def test_warnings_have_the_form_of_the_lines_of_their_command(tmp_path: Path) -> None:
    """Python prints them by its last resort, where no handler is set up."""
    warning = logging.makeLogRecord({"msg": "s3://k:5ecret@b/x"})
    for words, form in ((["label", "in", "out", "--limit", "0"], f"{TIME} "), (["runs", "x"], "")):
        assert main(words) == 2
        assert logging.lastResort is not None
        assert re.fullmatch(f"{form}s3://b/x", logging.lastResort.format(warning))


def test_label_has_no_other_way_to_print_on_stderr() -> None:
    for file in sorted((ROOT / "jobs" / "label").rglob("*.py")):
        printed = [
            node
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.keyword) and node.arg == "file"
        ]
        assert len(printed) == (file.name == "lines.py"), file
