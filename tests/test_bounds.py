"""Packages of which we use private parts have tested versions, and one file each uses them."""

import ast
import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = {one.name: one for one in map(Requirement, PROJECT["dependencies"])}
# The only file that may use the private parts of each package.
PRIVATE = {
    "torch": "model/ops/torch_internals.py",
    "numba": "model/ops/cpu_kernels.py",
    "llvmlite": "model/ops/cpu_kernels.py",
    "aiobotocore": "pipeline/storage/s3.py",
    "ray": "jobs/cluster/ray_internals.py",
}


def packages_used_privately(file: Path) -> set[str]:
    """Find the packages of which a file uses a name with an underscore or a module `core`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        for name in names:
            package = name.partition(".")[0]
            internal = re.search(r"\.(_[a-z]|core\.)", name, re.IGNORECASE)
            if package in PRIVATE and internal and "__" not in name:
                found.add(package)
    return found


def test_private_parts_are_used_in_one_file_each() -> None:
    """Files of `bench` are exempt, because they measure these packages from the inside."""
    for top in ("model", "pipeline", "jobs"):
        for file in (ROOT / top).rglob("*.py"):
            name = str(file.relative_to(ROOT))
            if not name.startswith("jobs/bench/"):
                for package in packages_used_privately(file):
                    assert PRIVATE[package] == name, f"{name} uses private parts of {package}"


def test_one_file_uses_the_library_of_the_driver() -> None:
    files = [file for top in ("model", "pipeline", "jobs") for file in (ROOT / top).rglob("*.py")]
    users = [file for file in files if re.search(r"import pynvml|from pynvml", file.read_text())]
    assert [str(file.relative_to(ROOT)) for file in users] == ["pipeline/gpu/nvml.py"]


BOUNDED = {*PRIVATE, "nvidia-ml-py", "s3fs", "pillow", "torchvision"}


@pytest.mark.parametrize("package", sorted(BOUNDED))
def test_installed_versions_lie_within_their_bounds(package: str) -> None:
    specifier = REQUIREMENTS[package].specifier
    assert any(one.operator == "<" for one in specifier), f"{package} has no upper bound"
    assert version(package) in specifier


def test_aiobotocore_parses_listings_through_the_method_that_is_replaced() -> None:
    from aiobotocore.parsers import AioResponseParserFactory, AioRestXMLParser

    replaced = inspect.signature(AioRestXMLParser._handle_structure)
    assert list(replaced.parameters) == ["self", "shape", "node"]
    made = inspect.signature(AioResponseParserFactory.create_parser)
    assert list(made.parameters) == ["self", "protocol_name"]
    assert AioResponseParserFactory()._defaults == {}


def test_s3fs_takes_a_session_and_a_number_of_attempts() -> None:
    from s3fs import S3FileSystem

    fs = S3FileSystem(skip_instance_cache=True)
    assert fs.session is None and isinstance(fs.retries, int) and fs.kwargs == {}
