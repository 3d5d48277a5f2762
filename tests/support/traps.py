"""A folder of Python files with the names of all modules, which nothing may import."""

import sys
from importlib.metadata import distributions
from pathlib import Path

# Notes where it is, then fails as a module that cannot be imported.
TRAP = """
from pathlib import Path
with (Path(__file__).parent / "imported.txt").open("a") as file:
    print(__name__, file=file)
raise ImportError("this is a file of the lake")
"""


def write_traps(folder: Path) -> None:
    """Write a file for each module of Python, and for each module that is installed."""
    names = {*sys.stdlib_module_names, "jobs", "pipeline", "model"}
    for distribution in distributions():
        for file in distribution.files or []:
            names.add(Path(file.parts[0]).stem)
    for name in filter(str.isidentifier, names):
        (folder / f"{name}.py").write_text(TRAP)


def imported(folder: Path) -> list[str]:
    """The names of the files of `write_traps` that were imported."""
    notes = folder / "imported.txt"
    return sorted(set(notes.read_text().split())) if notes.exists() else []
