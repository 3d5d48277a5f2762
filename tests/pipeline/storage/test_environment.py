"""Numbers in environment variables, and what is said of others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.label.log.lines import without_time
from pipeline.storage.environment import number_of_variable
from pipeline.storage.errors import InputError
from tests.support.parameters import others_slow

NAME = "NUMBER_OF_A_TEST"


def test_numbers_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert number_of_variable(NAME, 60) == 60
    for text, number in (("", 60), ("5", 5), (" 2.5 ", 2.5)):
        monkeypatch.setenv(NAME, text)
        assert number_of_variable(NAME, 60) == number
    monkeypatch.setenv(NAME, "a minute")
    with pytest.raises(InputError, match=f"{NAME}=a minute: give a number, such as 60"):
        number_of_variable(NAME, 60)


@pytest.mark.parametrize(
    ("name", "command"),
    others_slow(
        [
            ("DETR_BATCH_STORE_PATIENCE", ["runs"]),
            ("DETR_BATCH_LEASE_SECONDS", ["runs"]),
            ("DETR_BATCH_STALL_SECONDS", ["label", "in"]),
        ]
    ),
)
def test_a_command_says_which_variable_is_no_number(
    name: str, command: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *command, str(tmp_path / "out")],
        env={**os.environ, name: "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    line = f"detr-batch: {name}=x: give a number, such as "
    assert done.returncode == 2 and without_time(done.stderr).startswith(line), done.stderr
