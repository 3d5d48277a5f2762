"""The lock on a local disk and on a real S3 server with conditional writes."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.storage.files import InputError, OutputError, create_whole, join, open_location
from pipeline.storage.lock import OLD_NAME, LockLost, OutputLock, lease_of_bytes
from pipeline.storage.process_identity import has_ended, identity_of_process
from tests.support.damage import warnings_of

LOCK_NAME = "lock.json"


@pytest.fixture(params=["disk", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "out")
    bucket: str = request.getfixturevalue("bucket")
    return bucket


def test_second_holder_is_refused_and_third_may_come(output: str) -> None:
    with OutputLock(output, LOCK_NAME), pytest.raises(InputError, match="is being written by"):
        OutputLock(output, LOCK_NAME).__enter__()
    with OutputLock(output, LOCK_NAME) as lock:
        lock.check()
    fs, path = open_location(join(output, LOCK_NAME), "OUTPUT")
    fs.invalidate_cache()
    assert not fs.exists(path)


def test_a_file_is_created_once(output: str) -> None:
    fs, path = open_location(join(output, LOCK_NAME), "OUTPUT")
    fs.makedirs(output, exist_ok=True)
    assert create_whole(fs, path, b"first")
    assert not create_whole(fs, path, b"second")
    assert fs.cat_file(path) == b"first"


def test_one_of_many_at_once_gets_it(output: str, settling: None) -> None:
    held, refused = [], []
    start = threading.Barrier(6)

    def try_it() -> None:
        lock = OutputLock(output, LOCK_NAME)
        start.wait()
        try:
            held.append(lock.__enter__())
        except (InputError, LockLost) as error:
            refused.append(error)

    threads = [threading.Thread(target=try_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert len(refused) == 5
    held[0].check()
    held[0].__exit__(None, None, None)


def test_ended_lease_is_taken_over_and_its_holder_notices(output: str) -> None:
    dead = OutputLock(output, LOCK_NAME, lease_seconds=0.5)
    fs, path = open_location(join(output, LOCK_NAME), "OUTPUT")
    fs.makedirs(output, exist_ok=True)
    assert create_whole(fs, path, dead._content())
    with pytest.raises(InputError, match="its lease ends"):
        OutputLock(output, LOCK_NAME).__enter__()
    time.sleep(0.6)
    with OutputLock(output, LOCK_NAME) as heir:
        heir.check()
        with pytest.raises(LockLost, match="taken over"):
            dead.check()


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_a_live_holder_of_another_clock_is_left_alone(output: str, ahead: float) -> None:
    """The lock of a dead holder is taken over, whatever time its clock showed."""

    class OfAnotherClock(OutputLock):
        def _content(self) -> bytes:
            document = json.loads(super()._content())
            return json.dumps({**document, "expires_at": document["expires_at"] + ahead}).encode()

    other = OfAnotherClock(output, LOCK_NAME, lease_seconds=2)
    with other, pytest.raises(InputError, match="is being written by"):
        OutputLock(output, LOCK_NAME).__enter__()
    fs, path = open_location(join(output, LOCK_NAME), "OUTPUT")
    fs.makedirs(output, exist_ok=True)
    dead = OfAnotherClock(output, LOCK_NAME, lease_seconds=0.5)
    assert create_whole(fs, path, dead._content())
    with OutputLock(output, LOCK_NAME, lease_seconds=2) as heir:
        heir.check()


STOPPED = """
import os, signal, sys
from pipeline.storage.lock import OutputLock, LockLost
with OutputLock({output!r}, {name!r}, lease_seconds=1) as lock:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        lock.check()
    except LockLost as error:
        print(error)
"""


def test_holders_that_stood_still_must_not_publish(output: str) -> None:
    """Two holders are stopped for longer than their leases, and one has a successor."""
    outputs = [f"{output}/alone", f"{output}/inherited"]
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", STOPPED.format(output=one, name=LOCK_NAME)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for one in outputs
    ]
    for holder in holders:
        assert holder.stdin and holder.stdout
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    with OutputLock(outputs[1], LOCK_NAME) as heir:
        for holder in holders:
            holder.send_signal(signal.SIGCONT)
            said, _ = holder.communicate("\n", timeout=30)
            assert ("taken over by" in said) or ("was not renewed" in said)
        heir.check()


def test_lease_is_renewed(output: str) -> None:
    with OutputLock(output, LOCK_NAME, lease_seconds=1) as lock:
        time.sleep(1.5)
        lock.check()
        with pytest.raises(InputError):
            OutputLock(output, LOCK_NAME).__enter__()


def test_lock_that_was_never_written_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / OLD_NAME).touch()
    with OutputLock(str(tmp_path), OLD_NAME, lease_seconds=2):
        assert "token" in json.loads((tmp_path / OLD_NAME).read_text())


def test_an_empty_lock_of_this_version_is_damaged(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).touch()
    with pytest.raises(OutputError, match=f"{tmp_path}/{LOCK_NAME} is damaged: delete it"):
        OutputLock(str(tmp_path), LOCK_NAME).__enter__()
    assert (tmp_path / LOCK_NAME).read_bytes() == b""


def lease(**changes: object) -> bytes:
    whole = {"token": "t", "holder": "h:1", "lease_seconds": 2.0, "expires_at": 0.0}
    return json.dumps({**whole, **changes}).encode()


def test_lengths_of_a_lease() -> None:
    for whole in (lease(), lease(lease_seconds=86_400), lease(lease_seconds=1, expires_at=-1e300)):
        assert lease_of_bytes(whole) is not None
    for strange in (lease(lease_seconds=86_401), lease(lease_seconds=-1), b"[" * 100_000, b"\xff"):
        assert lease_of_bytes(strange) is None
    with pytest.raises(InputError, match="DETR_BATCH_LEASE_SECONDS"):
        OutputLock("out", LOCK_NAME, lease_seconds=float("inf"))


@pytest.mark.parametrize("clock", [0.0, 253_402_300_799.0, 1e300])  # 1970, 9999, and never
def test_a_dead_holder_is_waited_for_no_longer_than_its_lease(tmp_path: Path, clock: float) -> None:
    (tmp_path / LOCK_NAME).write_bytes(lease(lease_seconds=0.5, expires_at=clock))
    began = time.monotonic()
    with OutputLock(str(tmp_path), LOCK_NAME) as heir:
        heir.check()
    assert time.monotonic() - began < 5


def test_a_lease_that_is_too_long_to_watch_is_left_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.lock.MOST_WATCHED_SECONDS", 0.5)
    for lease_seconds, clock in ((2, 0.0), (1, 1e12)):  # watched for 0.75 s, and for 1 s
        content = lease(lease_seconds=lease_seconds, expires_at=clock)
        (tmp_path / LOCK_NAME).write_bytes(content)
        with pytest.raises(InputError, match=r"h:1.*or delete the file if it has ended"):
            OutputLock(str(tmp_path), LOCK_NAME).__enter__()
        assert (tmp_path / LOCK_NAME).read_bytes() == content
    (tmp_path / LOCK_NAME).write_bytes(lease(lease_seconds=1))
    with OutputLock(str(tmp_path), LOCK_NAME):
        pass


def test_a_lock_that_is_damaged_while_it_is_held_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = warnings_of("pipeline.storage.lock", monkeypatch)
    with OutputLock(str(tmp_path), LOCK_NAME) as lock:
        (tmp_path / LOCK_NAME).write_bytes(b"[]")
        with pytest.raises(OutputError, match="is damaged"):
            lock.check()
    assert (tmp_path / LOCK_NAME).read_bytes() == b"[]"
    (line,) = logged
    assert "is damaged: delete it" in line


@pytest.mark.slow
def test_lease_outlives_a_store_that_fails_for_a_while(tmp_path: Path) -> None:
    with OutputLock(str(tmp_path / "out"), LOCK_NAME, lease_seconds=2) as lock:
        moved = tmp_path / "moved"
        (tmp_path / "out").rename(moved)
        (tmp_path / "out").touch()  # no folder: reading and writing the lock fail
        time.sleep(0.8)
        (tmp_path / "out").unlink()
        moved.rename(tmp_path / "out")
        time.sleep(1.7)
        lock.check()
        with pytest.raises(InputError, match="is being written by"):
            OutputLock(str(tmp_path / "out"), LOCK_NAME).__enter__()


HOLD = """
import sys, time
from pipeline.storage.lock import OutputLock
with OutputLock(*sys.argv[1:]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which process it was")
def test_the_lock_of_a_killed_process_of_this_machine_is_taken_at_once(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    command = [sys.executable, "-c", HOLD, out, LOCK_NAME]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(InputError, match=rf"is being written by .*:{holder.pid} "):
            OutputLock(out, LOCK_NAME).__enter__()
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie
        with OutputLock(out, LOCK_NAME) as lock:
            lock.check()
    assert has_ended(f"{' '.join(identity_of_process().split(' ')[:2])} {holder.pid} 1")


def test_a_process_is_told_from_others_by_all_that_is_known() -> None:
    boot, namespace, pid, start = identity_of_process().split(" ")
    assert not has_ended(f"{boot} {namespace} {pid} {start}")
    assert has_ended(f"{boot} {namespace} {pid} {int(start) + 1}")  # its number is used again
    for other in (
        "",
        "x",
        f"other {namespace} {pid} 1",
        f"{boot} pid:[1] {pid} 1",
        f"{boot} a b c d",
    ):
        assert not has_ended(other)
    assert not has_ended(f"{boot} {namespace} ../{pid} 1")


def test_a_holder_whose_process_is_unknown_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = warnings_of("pipeline.storage.lock", monkeypatch)
    (tmp_path / LOCK_NAME).write_bytes(lease(lease_seconds=0.5))
    with OutputLock(str(tmp_path), LOCK_NAME):
        pass
    (line,) = logged
    assert "is locked by h:1, whose lease has ended: watching for 0 s whether it lives" in line


def test_a_full_disk_is_said_to_be_why_a_lease_ended(tmp_path: Path) -> None:
    with OutputLock(str(tmp_path), LOCK_NAME, lease_seconds=0.5) as lock:
        lock._stop.set()
        lock._failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        time.sleep(0.6)
        with pytest.raises(LockLost, match="the disk is full: make room on it"):
            lock.check()


def test_a_lease_that_ended_says_why(tmp_path: Path) -> None:
    with OutputLock(str(tmp_path / "out"), LOCK_NAME, lease_seconds=1) as lock:
        moved = tmp_path / "moved"
        (tmp_path / "out").rename(moved)
        (tmp_path / "out").touch()
        time.sleep(1.5)
        (tmp_path / "out").unlink()
        moved.rename(tmp_path / "out")
        with pytest.raises(LockLost, match=r"not renewed for \d s \(.*Not a directory"):
            lock.check()
