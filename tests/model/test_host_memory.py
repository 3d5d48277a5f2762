"""A process uses its freed memory again; the page faults that the system counts show it."""

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource", reason="page faults are counted on Unix alone")

FAULTS = """
import resource, torch
from model.host_memory import keep_freed_memory
is_kept = {keep} and keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16 << 20, dtype=torch.uint8), torch.ones(64 << 20, dtype=torch.uint8)
before = faults()
for _ in range(10):
    torch.ones(16 << 20, dtype=torch.uint8), torch.ones(64 << 20, dtype=torch.uint8)
print(is_kept, faults() - before)
"""


def count_page_faults(keep: bool) -> int:
    """Count the page faults of a process that allocates and frees memory ten times."""
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    is_kept, count = done.stdout.split()
    if keep and is_kept == "False":
        pytest.skip("the C library is not glibc")
    return int(count)


def test_freed_memory_is_used_again() -> None:
    assert count_page_faults(keep=True) < 0.5 * count_page_faults(keep=False)
