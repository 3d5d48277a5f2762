"""Imports point one way, and what CPU workers load is free of torch."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from itertools import takewhile
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("model", "pipeline", "jobs")  # each imports only from itself and those before it
STAGES = ("read", "prepare", "decode", "detect", "stage")
MOST_LINES = 400


def files_of(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def imported(file: Path) -> set[str]:
    """Full names of all modules that a file imports, at its top or later."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            modules = (f"{node.module}.{alias.name}" for alias in node.names)
            names.update(name for name in modules if module_file(name))
    return names


def module_file(name: str) -> Path | None:
    """The file of a module of ours, or of a package of ours."""
    path = ROOT.joinpath(*name.split("."))
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.is_file()), None)


def room(file: Path) -> str:
    """The folder that a file lies in; the file itself where that is one of the top level."""
    inside = file.relative_to(ROOT)
    return str(inside if len(inside.parts) == 2 and inside.parts[0] != "model" else inside.parent)


@pytest.mark.parametrize("top", TOP)
def test_top_folders_import_only_from_those_before_them(top: str) -> None:
    allowed = {*takewhile(lambda other: other != top, TOP), top}
    for file in files_of(top):
        assert {name.split(".")[0] for name in imported(file)} & set(TOP) <= allowed, file


def test_rooms_form_no_circle() -> None:
    """Also counting what a function imports when it is called, or for the sake of types alone."""
    graph: dict[str, set[str]] = {}
    for file in files_of(*TOP):
        needed = graph.setdefault(room(file), set())
        others = (module_file(name) for name in imported(file))
        needed |= {room(other) for other in others if other} - {room(file)}
    order = list(TopologicalSorter(graph).static_order())  # CycleError names the rooms
    assert order.index("pipeline/schema.py") < order.index("pipeline/dataflow.py")


def test_no_file_lies_loose() -> None:
    """A command is a file or a folder of its name; what several share is in a folder."""
    commands = {"query", "runs", "compact", "coco", "__init__"}
    assert {file.stem for file in (ROOT / "jobs").glob("*.py")} <= commands
    inside = {file.stem for file in (ROOT / "pipeline").glob("*.py")}
    assert inside <= {"schema", "dataflow", "__init__"}


def test_only_the_room_of_output_spells_its_paths() -> None:
    spelled = re.compile(r"_runs/|_staging|^(images|detections)/$")
    for file in files_of("pipeline", "jobs"):
        if "jobs/output" in file.as_posix():
            continue
        tree = ast.parse(file.read_text())
        said = {
            ast.get_docstring(node, clean=False) for node in ast.walk(tree) if has_docstring(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value in said or not spelled.search(node.value), (file, node.value)


def has_docstring(node: ast.AST) -> TypeGuard[ast.Module | ast.ClassDef | ast.FunctionDef]:
    return isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)


def test_no_file_is_too_long() -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in files_of(*TOP, "tests")}
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}


def test_model_knows_no_ray_and_no_parquet() -> None:
    for file in files_of("model"):
        foreign = {name.split(".")[0] for name in imported(file)}
        assert not foreign & {"ray", "pyarrow", "s3fs"}, file


@pytest.mark.parametrize("stage", STAGES)
def test_stages_do_not_import_one_another(stage: str) -> None:
    others = {f"pipeline.stages.{other}" for other in STAGES if other != stage}
    assert not imported(ROOT / "pipeline" / "stages" / f"{stage}.py") & others


def loads(module: str, *foreign: str) -> bool:
    """Whether a process that imports a module has one of the `foreign` then."""
    check = f"import sys, {module}; sys.exit(not set({foreign}).isdisjoint(sys.modules))"
    return subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode != 0


@pytest.mark.parametrize(
    "module", ["plan.plan", "stages.tasks", "storage.lock", "stages.prepare", "isolation.child"]
)
def test_workers_without_a_detector_do_not_load_torch(module: str) -> None:
    assert not loads(f"pipeline.{module}", "torch")


@pytest.mark.parametrize(
    "module",
    [
        "report.report",
        "query",
        "evaluate.evaluate",
        "compare.compare",
        "exports.exports",
        "runs",
        "compact",
        "label.options",
    ],
)
def test_commands_over_tables_start_without_torch_and_ray(module: str) -> None:
    assert not loads(f"jobs.{module}", "torch", "ray")
