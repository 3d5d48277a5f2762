"""jobs/REFERENCE.md is up to date, and names all environment variables that the code reads."""

import re
from pathlib import Path

import pytest

from jobs.cli.reference import FILE, VARIABLES, Variable, reference

ROOT = Path(__file__).parents[3]
ROOMS = ("model", "pipeline", "jobs", "tests", "infra")
KINDS = {".py", ".sh", ".yaml"}


def test_the_reference_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == reference(), "run `make reference`"


def test_the_reference_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = reference()
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert reference() == before


def test_every_variable_is_in_the_table() -> None:
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*") if file.suffix in KINDS]
    found = {
        name
        for file in files
        if file.name not in ("reference.py", Path(__file__).name)
        for name in re.findall(r"\bDETR_BATCH_[A-Z_]*[A-Z]\b", file.read_text(encoding="utf-8"))
    }
    assert found == {variable.name for variable in VARIABLES}


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_a_variable_is_read_where_the_table_says(variable: Variable) -> None:
    code = (ROOT / variable.file).read_text(encoding="utf-8")
    given = re.search(rf'"{variable.name}"(?:, (?:"([^"]*)"|(\d+)))?', code)
    assert given, variable.file
    assert (given[1] or given[2] or "") == variable.default
