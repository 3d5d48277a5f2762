"""A holder of the lock that wakes up late, or whose requests arrive late, and its successor."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from aiohttp import web
from s3fs import S3FileSystem

from pipeline.storage.errors import StorageUnavailable
from pipeline.storage.files import S3_OPTIONS, InputError, create_whole, join, open_location
from pipeline.storage.lock import Lease, LockLost, OutputLock
from tests.chaos.faulty_store import FaultyStore
from tests.support.damage import warnings_of
from tests.support.parameters import others_slow

LOCK_NAME = "lock.json"

# A holder that stops itself right before it changes the lock file, as if its machine slept.
SLEEPER = """
import os, signal, sys, time
from pipeline.storage.lock import OutputLock
armed = False
def stop_before(name):
    function = getattr(os, name)
    def stopping(path, *arguments, **options):
        if armed and str(arguments[0] if arguments else path).endswith({name!r}):
            os.kill(os.getpid(), signal.SIGSTOP)
        return function(path, *arguments, **options)
    setattr(os, name, stopping)
for name in {functions!r}:
    stop_before(name)
with OutputLock({output!r}, {name!r}, lease_seconds=1):
    print("held", flush=True)
    armed = True
    time.sleep({seconds})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("functions", "seconds"), others_slow([(("unlink", "remove"), 0.1), (("replace",), 1.0)])
)
def test_a_holder_that_wakes_up_leaves_the_lock_of_its_successor_alone(
    functions: tuple[str, ...],
    seconds: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The holder read its own lock, and slept before it deleted or renewed the lock."""
    monkeypatch.setattr("pipeline.storage.kernel_locks.LOCK_SECONDS", 0.5)
    output = str(tmp_path)
    code = SLEEPER.format(functions=functions, output=output, name=LOCK_NAME, seconds=seconds)
    sleeper = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert sleeper.stdout and sleeper.stdout.readline() == "held\n"
        os.waitpid(sleeper.pid, os.WUNTRACED)
        time.sleep(1.5)
        successor = OutputLock(output, LOCK_NAME)
        try:
            successor.__enter__()
        except StorageUnavailable as error:  # refused is as well: the sleeper still has the folder
            assert "stands still" in str(error)
            sleeper.send_signal(signal.SIGCONT)
            sleeper.wait(30)
            successor = OutputLock(output, LOCK_NAME)
            successor.__enter__()
        sleeper.send_signal(signal.SIGCONT)
        sleeper.wait(30)
        successor.check()
        successor.__exit__(None, None, None)
        assert not list(tmp_path.iterdir())
    finally:
        sleeper.kill()
        sleeper.wait()


class SlowStore(FaultyStore):
    """Holds back requests of one method for the lock, until `release` is set."""

    def __init__(self, target: str, method: str):
        super().__init__(target)
        self.method = method
        self.armed = False

    async def _hold(self, request: web.Request) -> None:
        while (
            self.armed
            and request.method == self.method
            and request.path.endswith(LOCK_NAME)
            and not self.release.is_set()
        ):
            self.held.set()
            await asyncio.sleep(0.02)


LEASE = 3.0  # seconds; on a busy machine a lock of one second is lost before it is taken


def lock_through(store: FaultyStore, bucket: str) -> OutputLock:
    lock = OutputLock(bucket, LOCK_NAME, lease_seconds=LEASE)
    lock.fs = S3FileSystem(endpoint_url=store.url, **S3_OPTIONS)
    lock.fs.retries = 1  # as `open_location` does
    return lock


@pytest.mark.parametrize("method", others_slow(["DELETE", "PUT"]))
def test_a_late_request_leaves_the_lock_of_a_successor_alone(method: str, bucket: str) -> None:
    """The request of a release or a renewal arrives after another holder has taken over."""
    store = SlowStore(os.environ["AWS_ENDPOINT_URL"], method)
    with store.running():
        slow = lock_through(store, bucket)
        slow.__enter__()
        store.armed = True
        leaving = threading.Thread(target=slow.__exit__, args=(None, None, None))
        if method == "PUT":
            assert store.held.wait(5)
        leaving.start()
        assert store.held.wait(5)
        time.sleep(1.2 * LEASE)
        with OutputLock(bucket, LOCK_NAME) as successor:
            store.release.set()
            leaving.join(30)
            successor.check()


@pytest.mark.slow
def test_no_release_is_repeated_when_the_lease_has_ended(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This must hold even on a store that ignores conditions."""
    store = FaultyStore(os.environ["AWS_ENDPOINT_URL"])
    store.kinds = ("error",)
    with store.running():
        lock = lock_through(store, bucket)
        logged = warnings_of("pipeline.storage.lock", monkeypatch)
        lock.__enter__()
        store.rate = 1.0
        leaving = threading.Thread(target=lock.__exit__, args=(None, None, None))
        leaving.start()
        time.sleep(1.2 * LEASE)
        requests = len(store.requests)
        leaving.join(30)
        assert len(store.requests) == requests
        (line,) = logged
        assert "stays until its lease ends" in line
    with OutputLock(bucket, LOCK_NAME) as successor:
        successor.check()


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_of_two_that_find_a_dead_holder_one_gets_the_lock(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, settling: None
) -> None:
    """Both find the holder dead before one of them writes."""
    output = str(tmp_path) if kind == "disk" else str(request.getfixturevalue("bucket"))
    fs, path = open_location(join(output, LOCK_NAME), "OUTPUT")
    dead = {"token": "t", "holder": "h:1", "lease_seconds": 1.0, "expires_at": 0.0}
    assert create_whole(fs, path, json.dumps(dead).encode())
    meeting = threading.Barrier(2)
    held: list[OutputLock] = []
    refused: list[Exception] = []

    class Late(OutputLock):
        """Stands still before it takes the lock of the dead holder."""

        def __init__(self, seconds: float):
            super().__init__(output, LOCK_NAME)
            self.seconds = seconds

        def _lives(self, holder: Lease) -> bool:
            lives = super()._lives(holder)
            if holder.token == "t":
                meeting.wait(30)
                time.sleep(self.seconds)
            return lives

    def take(lock: OutputLock) -> None:
        try:
            held.append(lock.__enter__())
        except (InputError, LockLost) as error:
            refused.append(error)

    threads = [threading.Thread(target=take, args=(Late(seconds),)) for seconds in (0, 1.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(held) == len(refused) == 1
    held[0].check()
    held[0].__exit__(None, None, None)


def test_who_is_interrupted_while_it_takes_the_lock_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.storage.lock.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        OutputLock(str(tmp_path / "out"), LOCK_NAME).__enter__()
    assert not list(tmp_path.iterdir())
