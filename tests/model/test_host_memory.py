"""What a process frees it uses again: counted by the page faults of the system."""

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource", reason="page faults are counted on Unix alone")

FAULTS = """
import resource, torch
from model.host_memory import keep_freed_memory
kept = {kept} and keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16 << 20, dtype=torch.uint8), torch.ones(64 << 20, dtype=torch.uint8)
before = faults()
for _ in range(10):
    torch.ones(16 << 20, dtype=torch.uint8), torch.ones(64 << 20, dtype=torch.uint8)
print(kept, faults() - before)
"""


def faults(kept: bool) -> int:
    command = [sys.executable, "-c", FAULTS.format(kept=kept)]
    said, count = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    if kept and said == "False":
        pytest.skip("the C library is not glibc")
    return int(count)


def test_freed_memory_is_used_again() -> None:
    assert faults(kept=True) < 0.5 * faults(kept=False)
