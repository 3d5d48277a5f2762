"""Imports point one way, and what CPU workers load is free of torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {"model": {"model"}, "pipeline": {"model", "pipeline"}}
STAGES = ("read", "prepare", "decode", "detect", "stage")


def imported(file: Path) -> set[str]:
    """Full names of all modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_from_those_before_them(room: str) -> None:
    for file in (ROOT / room).rglob("*.py"):
        own = {name.split(".")[0] for name in imported(file)} & {"model", "pipeline", "jobs"}
        assert own <= ALLOWED[room], file


def test_model_knows_no_ray_and_no_parquet() -> None:
    for file in (ROOT / "model").rglob("*.py"):
        foreign = {name.split(".")[0] for name in imported(file)}
        assert not foreign & {"ray", "pyarrow", "s3fs"}, file


@pytest.mark.parametrize("stage", STAGES)
def test_stages_do_not_import_one_another(stage: str) -> None:
    others = {f"pipeline.{other}" for other in STAGES if other != stage}
    assert not imported(ROOT / "pipeline" / f"{stage}.py") & others


@pytest.mark.parametrize("module", ["plan", "blocks", "lock", "prepare"])
def test_workers_without_a_detector_do_not_load_torch(module: str) -> None:
    check = f"import sys, pipeline.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("command", ["report", "query", "evaluate", "compare", "exports", "runs"])
def test_commands_over_tables_start_without_torch_and_ray(command: str) -> None:
    check = f"import sys, jobs.{command}; sys.exit(not {{'torch', 'ray'}}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
