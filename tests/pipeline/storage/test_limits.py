"""A limit of the machine that a command reaches is one line that says what to do."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from jobs.cli import exit_code_of, message_of
from jobs.label.execution import explained_failures
from pipeline.storage.errors import CommandFailed, StorageUnavailable
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.limits import FEWEST_OPEN_FILES, low_limit, reached_limit
from tests.support.labelled import Labelled, write_run

LIMITS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "a file would be larger than it may be",
    errno.EMFILE: "too many files are open",
    errno.EROFS: "the disk can only be read",
}


@pytest.mark.parametrize(("number", "said"), LIMITS.items(), ids=map(errno.errorcode.get, LIMITS))
def test_each_limit_has_one_line_and_exit_code_1(number: int, said: str) -> None:
    reason = os.strerror(number)
    for error in (
        OSError(number, reason, "/disk/a"),
        RuntimeError(f"a library says: {reason} (os error {number})"),
        ImportError(f"lib.so: cannot open shared object file: {reason}"),
    ):
        message = message_of(error)
        assert said in message
        assert message.endswith(", then run the same command again")
        assert "\n" not in message
        assert exit_code_of(error) == 1
    assert message_of(OSError(number, reason, "/disk/a")).startswith("/disk/a: ")
    with (
        pytest.raises(StorageUnavailable, match=f"OUTPUT /disk: {said}"),
        explain_errors("OUTPUT", "/disk"),
    ):
        raise OSError(number, reason)


def test_other_errors_are_no_limit() -> None:
    assert reached_limit(FileNotFoundError(errno.ENOENT, "No such file", "/a")) is None
    error = KeyError("x")
    error.__cause__ = error
    assert reached_limit(error) is None


def test_a_full_disk_under_ray_is_one_line() -> None:
    """Ray Data puts its advice into the place of the name of the file."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "Failed to apply UDF.\nTo change retry")
    with pytest.raises(CommandFailed) as failed, explained_failures():
        raise RayTaskError("map", "pages\nof text", full)
    assert str(failed.value) == (
        "the run failed: the disk is full: make room on it. What is labelled is kept: run the same "
        "command again"
    )


def test_a_full_device_is_a_limit() -> None:
    with pytest.raises(OSError) as full, open("/dev/full", "wb", buffering=0) as device:
        device.write(b"x")
    assert reached_limit(full.value) == "the disk is full: make room on it"


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_one_line(tmp_path: Path) -> None:
    output = write_run(
        tmp_path / "out", [Labelled(f"file:///lake/{n}.jpg") for n in range(200)], ("",)
    )
    code = (
        "import resource, sys; from jobs.cli import main; import jobs.query; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); sys.exit(main(sys.argv[1:]))"
    )
    for more in (
        ["query", output, "SELECT * FROM range(9999)", "--out", str(tmp_path / "all.csv")],
        ["export", output, str(tmp_path / "all.json"), "--to", "coco"],
    ):
        command = [sys.executable, "-c", code, *more]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "a file would be larger than it may be" in done.stderr
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_ray_is_not_started_with_few_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert low_limit() is None
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEWEST_OPEN_FILES - 1, hard))
    try:
        limit = low_limit()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert limit == "this process may open 255 files: raise the limit (`ulimit -n 8192`)"
