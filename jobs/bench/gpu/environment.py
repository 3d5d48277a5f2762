"""What the figures of a bench hold for: the device, the versions and the code."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from jobs.bench.measure import environment

ROOMS = ("model", "pipeline", "jobs")
PACKAGES = ("triton", "transformers", "timm", "torchvision", "ray", "numpy", "pyarrow")


def code_digest() -> str:
    """Return 16 hex digits of this project's Python files, which identify a copy without git."""
    top = Path(__file__).parents[3]
    digest = hashlib.sha256()
    for file in sorted(file for room in ROOMS for file in (top / room).rglob("*.py")):
        digest.update(f"{file.relative_to(top).as_posix()}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def describe_environment(device: str) -> dict[str, Any]:
    """Describe the environment: the columns of a row, and the code, versions and device."""
    found: dict[str, Any] = {"row": environment(device), "code": code_digest()}
    found["versions"] = {name: _version(name) for name in PACKAGES}
    found["platform"] = platform.platform()
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
        found["compute_capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = properties.multi_processor_count
        found["memory_mib"] = properties.total_memory >> 20
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
