"""`python -m jobs.bench.wheels DIR` gathers what a GPU machine without a network lacks.

The wheels have the versions of requirements.lock. They leave as one tar in parts, as Ray's alone is
more than some ways into such a machine take at once.
"""

import argparse
import re
import subprocess
import sys
import tarfile
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from tempfile import TemporaryDirectory

from fsspec.implementations.local import LocalFileSystem
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.storage.files import write_whole

LOCK = Path(__file__).parents[2] / "requirements.lock"
BARE_MACHINE = Path(__file__).with_name("bare_machine.txt")
ROOTS = ("detr-batch", "hypothesis", "pytest", "pytest-xdist")
PART = re.compile(r"wheels\.tar\.\d{3}")
# pip needs each of these names
PLATFORMS = [f"manylinux_2_{glibc}_x86_64" for glibc in range(34, 4, -1)]
PLATFORMS += [f"manylinux{name}_x86_64" for name in ("2014", "2010", "1")]
INSTALL = (
    "SITE=${SITE:-$(mktemp -d)} WHEELS=$(mktemp -d) && cat wheels.tar.* | tar -x -C $WHEELS && "
    "python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target $SITE "
    "$WHEELS/*.whl && export PYTHONPATH=$SITE"
)


def read_requirements(path: Path) -> Iterator[Requirement]:
    """Yield the requirements or names of the file, one a line, without blank lines and comments."""
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            yield Requirement(line)


def read_installed(path: Path) -> set[str]:
    """Return normalised names. ValueError if the machine has no torch."""
    installed: set[str] = {canonicalize_name(one.name) for one in read_requirements(path)}
    if "torch" not in installed:
        raise ValueError(f"{path} lacks torch, which has to fit the GPU's driver: install it there")
    return installed


def describe_target(python: str) -> dict[str, str]:
    """Return the values of environment markers on Linux x86_64, except `extra`."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def find_needed(installed: Collection[str], python: str) -> set[str]:
    """Return the names that ROOTS require, but not those that only installed packages require."""
    target = describe_target(python)
    seen: set[tuple[str, str]] = set()
    unread = [Requirement(root) for root in ROOTS]
    while unread:
        requirement = unread.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if name in installed or (name, extra) in seen:
                continue
            seen.add((name, extra))
            for child in map(Requirement, requires(name) or []):
                if child.marker is None or child.marker.evaluate(target | {"extra": extra}):
                    unread.append(child)
    return {name for name, _ in seen} - {"detr-batch"}


def pin_versions(names: Collection[str], python: str) -> list[str]:
    """Return sorted pins `name==version`. ValueError names packages that the lock lacks."""
    target = describe_target(python)
    pins: dict[str, str] = {
        canonicalize_name(one.name): f"{one.name}{one.specifier}"
        for one in read_requirements(LOCK)
        if one.marker is None or one.marker.evaluate(target)
    }
    if unknown := sorted(set(names) - pins.keys()):
        raise ValueError(f"{LOCK.name} has no version of {', '.join(unknown)}: run `make lock`")
    return [pins[name] for name in sorted(names)]


def download_wheels(pins: Sequence[str], folder: Path, python: str) -> None:
    """Download each wheel by itself.

    RuntimeError, after all were tried, names those without a wheel.
    """
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for abi in (f"cp{python.replace('.', '')}", "abi3", "none"):
        command += ["--abi", abi]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    failed = []
    for pin in pins:
        done = subprocess.run(
            [*command, "--dest", str(folder), pin], capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            failed.append(f"{pin} ({said[-1] if said else 'pip says nothing'})")
    if failed:
        raise RuntimeError(f"no wheel for CPython {python} on Linux x86_64: {', '.join(failed)}")


def make_folder(folder: Path) -> None:
    """Make the folder; it may exist with an earlier tar's parts.

    ValueError names any other file in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(file.name for file in folder.iterdir() if not PART.fullmatch(file.name))
    if others:
        raise ValueError(f"{folder} has other files in it ({others[0]}): give an empty folder")


def write_parts(wheels: Path, folder: Path, part_bytes: int) -> list[Path]:
    """Write one tar of all wheels, cut into parts, after removing the parts of an earlier tar."""
    for old in folder.glob("wheels.tar.*"):
        old.unlink()
    parts = []
    with TemporaryDirectory() as name:
        tar = Path(name) / "wheels.tar"
        with tarfile.open(tar, "w") as archive:
            for wheel in sorted(wheels.glob("*.whl")):
                archive.add(wheel, wheel.name)
        with tar.open("rb") as file:
            for number, data in enumerate(iter(partial(file.read, part_bytes), b"")):
                parts.append(folder / f"wheels.tar.{number:03}")
                write_whole(LocalFileSystem(), str(parts[-1]), data)
    return parts


def gather_wheels(folder: Path, installed: Path, python: str, part_bytes: int) -> str:
    """Gather the wheels; return a text that says what was gathered and how to install it."""
    if part_bytes < 1:
        raise ValueError("--part-mb has to be more than 0")
    pins = pin_versions(find_needed(read_installed(installed), python), python)
    make_folder(folder)
    with TemporaryDirectory() as wheels:
        download_wheels(pins, Path(wheels), python)
        parts = write_parts(Path(wheels), folder, part_bytes)
    sizes = [part.stat().st_size / 1e6 for part in parts]
    lines = [f"{part}  {size:.1f} MB" for part, size in zip(parts, sizes, strict=True)]
    lines.append(f"{len(pins)} wheels, {sum(sizes):.1f} MB in {len(parts)} parts.")
    lines.append("The parts may travel in several calls. Where all have met, in their folder, run:")
    return "\n".join([*lines, INSTALL])


def main(argv: Sequence[str] | None = None) -> int:
    """Return exit status 1 if a wheel is not available, and 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.wheels", description=__doc__)
    parser.add_argument("folder", metavar="DIR", type=Path, help="an empty folder, or a new one")
    has = "what the machine has: names, or its `python -m pip list --format=freeze`"
    parser.add_argument("--installed", metavar="FILE", type=Path, default=BARE_MACHINE, help=has)
    parser.add_argument("--python-version", metavar="X.Y", default="3.12", help="of the machine")
    parser.add_argument("--part-mb", type=int, default=60, help="at most, in MB of 10^6 bytes")
    given = parser.parse_args(argv)
    part_bytes = given.part_mb * 10**6
    try:
        print(gather_wheels(given.folder, given.installed, given.python_version, part_bytes))
    except (OSError, ValueError, PackageNotFoundError, RuntimeError) as error:
        print(f"wheels: {error}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
