"""The module of a user's own detector (`--model python:package.module:function`), for a cluster.

What Python would import on this machine is sent along: the top-level module or package, and those
that it imports from outside of the installed packages. Nothing of them is run for that.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from jobs.accounting.plurals import counted
from jobs.submit.shipped_files import CODE
from model.from_python import module_and_name
from model.named import FROM_PYTHON
from pipeline.storage.errors import InputError

MOST_BYTES = 50 << 20  # of all modules together; Ray keeps what it is sent in the head's memory
INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class LocalModule:
    """A top-level module or package of the user, which no package installed."""

    name: str
    root: Path  # its file, or its folder
    files: tuple[Path, ...]

    def as_text(self) -> str:
        if self.root.is_file():
            return self.root.name
        return f"{self.root.name}/ ({counted(len(self.files), 'file')})"


def modules_of_model(model: str | None) -> list[LocalModule]:
    """The local modules that a model needs: that of its function, and all that it imports.

    There are none if it is installed here, or not here at all: then the nodes must have it.
    InputError if they are too large to be sent, and UnknownName for a wrong name.
    """
    if model is None or not model.startswith(FROM_PYTHON):
        return []
    name = module_and_name(model)[0].partition(".")[0]
    found: dict[str, LocalModule] = {}
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in found or name in CODE or (module := _local_module(name)) is None:
            continue
        found[name] = module
        waiting += sorted(_imported_names(module))
    size = sum(file.stat().st_size for module in found.values() for file in module.files)
    if size > MOST_BYTES:
        files = (file for module in found.values() for file in module.files)
        largest = max(files, key=lambda file: file.stat().st_size)
        raise InputError(
            f"the modules of --model have {size / 1e6:.0f} MB, and submit sends "
            f"{MOST_BYTES / 1e6:.0f} MB at most; the largest file is {largest}: give weights as "
            "--weights with a URL, or install the package in the image of the nodes"
        )
    return list(found.values())


def _local_module(name: str) -> LocalModule | None:
    """The module that `import name` takes, if it is a local one."""
    spec = _spec(name)
    if spec is None or spec.origin in ("built-in", "frozen"):
        return None
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    root = folders[0] if folders else Path(spec.origin or "")
    if not root.exists() or _is_installed(root):
        return None
    if not folders:
        return LocalModule(name, root, (root,))
    # A folder without __init__.py may hold anything: of it the modules alone are sent.
    files = _files(root, "*" if spec.origin else "*.py")
    return LocalModule(name, root, tuple(files))


def _spec(name: str) -> ModuleSpec | None:
    try:
        found = find_spec(name)
    except ValueError:  # a module without a specification, such as __main__
        return None
    return found or PathFinder.find_spec(name, [str(Path.cwd())])


def _is_installed(root: Path) -> bool:
    """Whether a package manager, or Python itself, put it there."""
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    root = root.resolve()
    return root.is_relative_to(standard) or not set(INSTALLED).isdisjoint(root.parts)


def _files(folder: Path, pattern: str) -> list[Path]:
    """The files of a package. What is hidden, and what Python compiled, is left out."""
    return sorted(
        file
        for file in folder.rglob(pattern)
        if file.is_file()
        and file.suffix != ".pyc"
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _imported_names(module: LocalModule) -> Iterator[str]:
    """The top-level names that the files of a module import, wherever they do."""
    for file in module.files:
        if file.suffix != ".py":
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # the job says what is wrong with it, if it needs it
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def ship_modules(modules: list[LocalModule], folder: Path) -> None:
    """Copy the modules into the `folder`, which a job has on its path."""
    for module in modules:
        for file in module.files:
            target = folder / module.root.name / file.relative_to(module.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())


def print_shipped(model: str | None, modules: list[LocalModule]) -> None:
    """Say which modules of the user go to the cluster, or that the nodes must have them."""
    if model is None or not model.startswith(FROM_PYTHON):
        return
    if modules:
        names = ", ".join(module.as_text() for module in modules)
        line = f"sent with the job for --model {model}: {names}"
    else:
        line = f"--model {model} is no module of this folder: the nodes must have it installed"
    print(line, file=sys.stderr)
