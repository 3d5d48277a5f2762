"""A control group without memory: the kernel kills what is there when it needs some."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.chaos.harness import NotPossible

ROOTS = {  # by version of control groups: the folder, and the file that bounds the memory
    1: (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    2: (Path("/sys/fs/cgroup"), "memory.max"),
}
MOST_BYTES = 1 << 20


class Group:
    """A control group."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, pid: int) -> None:
        """Move a process here; it pays for what it needs from now on, not for what it has."""
        (self.folder / "cgroup.procs").write_text(str(pid))


@contextmanager
def small_group(name: str) -> Iterator[Group]:
    """Make a group. NotPossible where that is forbidden: it takes root and control groups."""
    version = 1 if ROOTS[1][0].is_dir() else 2
    root, limit = ROOTS[version]
    folder = root / f"detr-batch-{name}"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(MOST_BYTES))
    except OSError as error:
        raise NotPossible(f"no control group of memory can be made: {error}") from error
    try:
        yield Group(folder)
    finally:
        for _ in range(50):  # the kernel takes a moment to let go of those that it killed
            with suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)
