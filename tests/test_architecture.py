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


def imported_modules(file: Path) -> set[str]:
    """Find the full names of all modules that a file imports, at its top or in a function."""
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
    """Find the file of one of our modules or packages; None for modules of others."""
    path = ROOT.joinpath(*name.split("."))
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.is_file()), None)


def room_of(file: Path) -> str:
    """Return the folder of a file, or the file itself if it lies directly in pipeline/ or jobs/."""
    inside = file.relative_to(ROOT)
    return str(inside if len(inside.parts) == 2 and inside.parts[0] != "model" else inside.parent)


@pytest.mark.parametrize("top", TOP)
def test_top_folders_import_only_from_those_before_them(top: str) -> None:
    allowed = {*takewhile(lambda other: other != top, TOP), top}
    for file in files_of(top):
        assert {name.split(".")[0] for name in imported_modules(file)} & set(TOP) <= allowed, file


def test_imports_form_no_cycle() -> None:
    """Neither of rooms nor of files. Imports within functions, and for types alone, count too."""
    rooms: dict[str, set[str]] = {}
    files: dict[str, set[str]] = {}
    for file in files_of(*TOP):
        others = {module_file(name) for name in imported_modules(file)} - {None, file}
        found = [other for other in others if other]
        rooms.setdefault(room_of(file), set()).update(map(room_of, found))
        # An `__init__` that gathers the names of its folder is above its files.
        inner = [other for other in found if other.name != "__init__.py"]
        files[str(file.relative_to(ROOT))] = {str(other.relative_to(ROOT)) for other in inner}
    for room, needed in rooms.items():
        needed.discard(room)
    order = list(TopologicalSorter(rooms).static_order())  # CycleError names the rooms
    assert order.index("pipeline/schema.py") < order.index("pipeline/dataflow.py")
    TopologicalSorter(files).prepare()


def test_every_file_lies_in_its_folder() -> None:
    """A file of jobs/ is a command; code that several commands share lies in a folder."""
    commands = {"query", "runs", "compact", "coco", "__init__"}
    assert {file.stem for file in (ROOT / "jobs").glob("*.py")} <= commands
    inside = {file.stem for file in (ROOT / "pipeline").glob("*.py")}
    assert inside <= {"schema", "dataflow", "local", "__init__"}


def test_only_jobs_output_contains_paths_within_output() -> None:
    spelled = re.compile(r"_runs/|_staging|^(images|detections)/$")
    for file in files_of("pipeline", "jobs"):
        if "jobs/output" in file.as_posix():
            continue
        tree = ast.parse(file.read_text())
        docstrings = {
            ast.get_docstring(node, clean=False) for node in ast.walk(tree) if has_docstring(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value in docstrings or not spelled.search(node.value), (
                    file,
                    node.value,
                )


def has_docstring(node: ast.AST) -> TypeGuard[ast.Module | ast.ClassDef | ast.FunctionDef]:
    return isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)


def test_no_file_is_too_long() -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in files_of(*TOP, "tests")}
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}


def test_model_imports_neither_ray_nor_parquet() -> None:
    for file in files_of("model"):
        foreign = {name.split(".")[0] for name in imported_modules(file)}
        assert not foreign & {"ray", "pyarrow", "s3fs"}, file


@pytest.mark.parametrize("stage", STAGES)
def test_stages_do_not_import_one_another(stage: str) -> None:
    others = {f"pipeline.stages.{other}" for other in STAGES if other != stage}
    assert not imported_modules(ROOT / "pipeline" / "stages" / f"{stage}.py") & others


IMPORT_ONE_BY_ONE = """
import importlib, sys
for module in MODULES:
    importlib.import_module(module)
    loaded = FOREIGN & set(sys.modules)
    if loaded:
        sys.exit(f"{module} loads {loaded}")
"""


def assert_none_loads(foreign: set[str], modules: list[str]) -> None:
    """Assert that a process that imports all modules then has none of the `foreign` ones."""
    code = IMPORT_ONE_BY_ONE.replace("MODULES", str(modules)).replace("FOREIGN", str(foreign))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_workers_without_a_detector_do_not_load_torch() -> None:
    modules = ["plan.plan", "stages.tasks", "storage.lock", "stages.prepare", "isolation.child"]
    assert_none_loads({"torch"}, [f"pipeline.{module}" for module in modules])


def test_commands_over_tables_start_without_torch_and_ray() -> None:
    modules = ["report.report", "query", "evaluate.evaluate", "compare.compare", "exports.exports"]
    modules += ["runs", "compact", "label.options"]
    assert_none_loads({"torch", "ray"}, [f"jobs.{module}" for module in modules])


def test_detectors_start_without_torchvision() -> None:
    """Its import takes as long as that of torch, and only training needs it."""
    assert_none_loads({"torchvision"}, ["pipeline.stages.detect", "model.zoo"])
