"""A process uses its freed memory again; the page faults that the system counts show it."""

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource", reason="page faults are counted on Unix alone")

FAULTS = """
import resource, torch
from model.host_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 << 20, dtype=torch.uint8), torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain = faults()
is_kept = keep_freed_memory()
faults()
print(is_kept, plain, faults())
"""


@pytest.mark.slow
def test_freed_memory_is_used_again() -> None:
    """A process allocates and frees memory ten times, before and after it keeps what it frees."""
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    is_kept, plain, kept = done.stdout.split()
    if is_kept == "False":
        pytest.skip("the C library is not glibc")
    assert int(kept) < 0.5 * int(plain)
