"""Batches of several scopes: none keeps the others out, and what is wrong is said soon."""

import threading
from pathlib import Path

from jobs.label.options import LabelOptions
from jobs.serve.batches.run import LabelRun, Variables
from jobs.serve.engine.engine import Engine
from jobs.serve.http.keys import add_key
from jobs.serve.settings.settings import ApiSettings
from tests.support.batching import batching, client_of, create, request, wait_for

ADDRESS = "https://example.com/a.jpg"


class Failing:
    """A run of `label` that refuses, once it may end."""

    def __init__(self, may_end: threading.Event):
        self._may_end = may_end

    def exit_code(self) -> int | None:
        return 2 if self._may_end.is_set() else None

    def reason(self) -> str:
        return "detr-batch: no"

    def stop(self) -> None:
        pass

    leave = stop


def test_scopes_take_turns(tmp_path: Path, engine: Engine) -> None:
    file = str(tmp_path / "keys.json")
    keys = {name: add_key(file, name, scope=name)[1] for name in ("ann", "bob")}
    may_end, started = threading.Event(), list[str]()

    def start(options: LabelOptions, _: Variables) -> LabelRun:
        started.append(options.output.split("/")[-2])  # the folder of the batch
        return Failing(may_end)

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
