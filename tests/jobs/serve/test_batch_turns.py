"""Batches of several scopes: none keeps the others out, and what is wrong is said soon."""

import threading
import time
from pathlib import Path

import pytest

from jobs.label.options import LabelOptions
from jobs.serve.batches.run import LabelRun, Variables
from jobs.serve.batches.store import folder_of_scope
from jobs.serve.batches.work import BatchWork
from jobs.serve.engine.engine import Engine
from jobs.serve.http.keys import add_key
from jobs.serve.settings.settings import ApiSettings
from pipeline.storage.errors import StorageUnavailable
from pipeline.storage.lock import OutputLock
from tests.support.batching import StandingRun, batching, client_of, create, request, wait_for

ADDRESS = "https://example.com/a.jpg"


def test_scopes_take_turns(tmp_path: Path, engine: Engine) -> None:
    file = str(tmp_path / "keys.json")
    keys = {name: add_key(file, name, scope=name)[1] for name in ("ann", "bob")}
    may_end, started = threading.Event(), list[str]()

    def start(options: LabelOptions, _: Variables) -> LabelRun:
        started.append(options.output.split("/")[-2])  # the folder of the batch
        return StandingRun(may_end)

    with batching(str(tmp_path), engine, ApiSettings(keys=file), start) as address:
        ann, bob = (client_of(address, key) for key in keys.values())
        lines = [request("a", [ADDRESS])]
        of_ann = [create(ann, lines) for _ in range(3)]
        wait_for(ann, of_ann[0], "in_progress")
        of_bob = create(bob, lines)
        wrong = wait_for(bob, create(bob, ["no request"]), "failed")
        assert wrong.errors and wrong.errors.data, "it is said while others run"
        assert len(started) == 1
        may_end.set()
        for client, batch in ((ann, of_ann[-1]), (bob, of_bob)):
            wait_for(client, batch, "failed")
        assert started == [one.id for one in (of_ann[0], of_bob, of_ann[1], of_ann[2])]


def test_a_batch_whose_creation_was_cut_off_holds_up_no_other(
    tmp_path: Path, engine: Engine
) -> None:
    may_end = threading.Event()
    may_end.set()
    with batching(str(tmp_path), engine, start=lambda *_: StandingRun(may_end)) as address:
        client = client_of(address)
        wait_for(client, create(client, [request("a", [ADDRESS])]), "failed")
        (scope,) = {path.parent.name for path in tmp_path.glob("batches/*/batch_*")}
        name = f"{scope}.batch_{'0' * 36}"  # older than all others of its scope
        (tmp_path / "batches" / "open" / name).touch()
        wait_for(client, create(client, [request("a", [ADDRESS])]), "failed")


def test_a_store_that_fails_for_one_scope_holds_up_no_other(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "keys.json")
    keys = {name: add_key(file, name, scope=name)[1] for name in ("ann", "bob")}
    of_ann = folder_of_scope("ann")
    advance = BatchWork.advance

    def advance_of_others(work: BatchWork, claim: OutputLock) -> bool:
        if of_ann in claim.output:
            raise StorageUnavailable("the lake of ann cannot be reached")
        return advance(work, claim)

    monkeypatch.setattr(BatchWork, "advance", advance_of_others)
    may_end = threading.Event()
    may_end.set()
    settings = ApiSettings(keys=file)
    with batching(str(tmp_path), engine, settings, lambda *_: StandingRun(may_end)) as address:
        ann, bob = (client_of(address, key) for key in keys.values())
        waiting = create(ann, [request("a", [ADDRESS])])
        wait_for(bob, create(bob, [request("a", [ADDRESS])]), "failed")
        assert ann.batches.retrieve(waiting.id).status == "validating"


def test_a_server_ends_while_inputs_are_read(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, read = threading.Event(), list[str]()

    def read_slowly(work: BatchWork, claim: OutputLock) -> bool:
        read.append(claim.output)
        reading.set()
        time.sleep(0.5)
        return True

    monkeypatch.setattr(BatchWork, "read_input", read_slowly)
    with batching(str(tmp_path), engine, start=lambda *_: StandingRun()) as address:
        client = client_of(address)
        lines = [request("a", [ADDRESS])]
        wait_for(client, create(client, lines), "in_progress")
        for _ in range(20):
            create(client, lines)
        assert reading.wait(30)
        began, so_far = time.monotonic(), len(read)
    assert time.monotonic() - began < 5
    assert len(read) - so_far <= 2 and len(set(read)) == len(read)
