"""Conditional changes of local files: one process at a time, and nobody who may only read."""

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage import kernel_locks
from pipeline.storage.conditional import remove_if, replace_if
from pipeline.storage.errors import StorageUnavailable

COUNT = """
import sys
from fsspec.implementations.local import LocalFileSystem
from pipeline.storage.conditional import replace_if
fs, path, done = LocalFileSystem(), sys.argv[1], 0
while done < 40:
    seen = open(path, "rb").read()
    done += replace_if(fs, path, lambda data: data == seen, str(int(seen) + 1).encode())
"""
STAND_STILL = """
import os, signal, sys
from fsspec.implementations.local import LocalFileSystem
from pipeline.storage.conditional import replace_if
def stand_still(data):
    print("locked", flush=True)
    signal.pause()
replace_if(LocalFileSystem(), sys.argv[1], stand_still, b"new")
"""
AS_NOBODY = """
import os, sys
from fsspec.implementations.local import LocalFileSystem
from pipeline.storage import conditional, kernel_locks
kernel_locks.LOCK_SECONDS = 0.5
os.setuid(65534)
conditional.replace_if(LocalFileSystem(), sys.argv[1], lambda _: True, b"new")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lock.json"
    path.write_bytes(b"0")
    return path


def replace(file: Path, data: bytes) -> bool:
    return replace_if(LocalFileSystem(), str(file), lambda _: True, data)


def test_processes_change_a_file_one_at_a_time(file: Path) -> None:
    """Each deletes the file of the lock while others open it."""
    words = [sys.executable, "-c", COUNT, str(file)]
    processes = [subprocess.Popen(words) for _ in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    assert file.read_bytes() == b"160"
    assert os.listdir(file.parent) == ["lock.json"]


@pytest.mark.parametrize(("of_folder", "of_lock"), [(0o755, 0o600), (0o775, 0o660)])
def test_who_may_only_read_holds_nobody_up(of_folder: int, of_lock: int, file: Path) -> None:
    """The lock of a folder may be held by whoever may read it: every run ended with its lease."""
    file.parent.chmod(of_folder)
    held = os.open(file.parent, os.O_RDONLY)
    modes = list[int]()

    def look(_: bytes) -> bool:
        (lock,) = (path for path in file.parent.iterdir() if path != file)
        modes.append(lock.stat().st_mode & 0o777)
        return True

    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert replace_if(LocalFileSystem(), str(file), look, b"new")
    finally:
        os.close(held)
    assert file.read_bytes() == b"new" and modes == [of_lock]


def test_a_process_that_stands_still_is_waited_for_and_one_that_was_killed_is_not(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_locks, "LOCK_SECONDS", 0.5)
    words = [sys.executable, "-c", STAND_STILL, str(file)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "locked\n"
        with pytest.raises(StorageUnavailable, match="stands still while it changes the file of"):
            replace(file, b"new")
        holder.kill()
    assert len(os.listdir(file.parent)) == 2  # what it left
    assert replace(file, b"new") and file.read_bytes() == b"new"
    assert os.listdir(file.parent) == ["lock.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")
def test_a_lock_of_another_user_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:  # that of a test may not be entered by others
        os.chmod(folder, 0o777)
        file, lock = Path(folder, "lock.json"), Path(folder, ".lock.json.lock")
        file.write_bytes(b"0")
        file.chmod(0o666)  # whatever the umask is
        lock.touch(0o600)
        words = [sys.executable, "-c", AS_NOBODY, str(file)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and f"changes the file of {lock}" in done.stderr
        lock.unlink()
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and file.read_bytes() == b"new", done.stderr


def test_what_is_not_there_is_not_changed(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path / "no" / "folder"):
        assert not replace(path, b"new")
        assert not remove_if(LocalFileSystem(), str(path), lambda _: True)
    assert not list(tmp_path.iterdir())
