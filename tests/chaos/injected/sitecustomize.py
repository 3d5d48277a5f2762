"""Faults on purpose: Python runs this file at its start where PYTHONPATH names its folder.

- Pictures that begin with one of `ENCODED_FAULTS` do it to the decoder that opens them.
- Pictures of one colour of `PIXEL_FAULTS` do it to the detector.
- Every change of an OUTPUT is a numbered step, written down in the folder that
  DETR_BATCH_FAULTS names. Its file `at` may hold the number of a step and a deed (`DEEDS`), which
  is done to the driver, and to the process that takes the step where that is another.
"""

import ctypes
import fcntl
import importlib.abc
import importlib.machinery
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

DEEDS = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "terminate": signal.SIGTERM,
    "interrupt": signal.SIGINT,
}


def faults() -> Path | None:
    """The folder of the faults of this process; None for a process without faults."""
    folder = os.environ.get("DETR_BATCH_FAULTS")
    return Path(folder) if folder else None


def crash() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stand_still() -> None:
    time.sleep(3600)


def devour() -> None:
    hoard = []
    while True:
        hoard.append(b"x" * (256 << 20))


def fail() -> None:
    raise RuntimeError("the device says no")


ENCODED_FAULTS = {
    b"FAULT-CRASH": crash,
    b"FAULT-LEAVE": leave,
    b"FAULT-STILL": stand_still,
    b"FAULT-DEVOUR": devour,
}
PIXEL_FAULTS = {(255, 0, 255): be_killed, (0, 255, 255): fail, (255, 255, 0): stand_still}


def add_decoder(image: Any) -> None:
    """A format of Pillow's whose files do what their first bytes say."""

    def accept(prefix: bytes) -> bool:
        return prefix.startswith(b"FAULT-")

    def opened(file: Any, _: Any) -> None:
        content = file.read()
        for sign, fault in ENCODED_FAULTS.items():
            if content.startswith(sign):
                fault()
        raise SyntaxError("no fault of that name")

    image.register_open("FAULT", opened, accept)


def add_faulty_device(predictor: Any) -> None:
    """`Predictor.submit` that looks at the pictures first."""
    submit = predictor.Predictor.submit

    def checked(self: Any, pixels: Any, *others: Any) -> Any:
        for image in pixels:
            fault = PIXEL_FAULTS.get(tuple(image[0, 0].tolist()))
            if fault and bool((image == image[0, 0]).all()):
                fault()
        return submit(self, pixels, *others)

    predictor.Predictor.submit = checked


def step(what: str) -> None:
    """Number and write down a step, and do the deed that waits for it."""
    folder = faults()
    if folder is None:
        return
    with (folder / "steps").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        number = len(file.readlines()) + 1
        file.write(what.replace("\n", " ") + "\n")
    wanted = folder / "at"
    if not wanted.exists():
        return
    at, deed = wanted.read_text().split()
    if int(at) == number:
        do(deed, folder)


def do(deed: str, folder: Path) -> None:
    """Send the signal of a deed to the driver, and to this process if it dies or stops too."""
    driver, here = int((folder / "driver").read_text()), os.getpid()
    (folder / "done").write_text(f"{driver} {here}")
    os.kill(driver, DEEDS[deed])
    if here != driver and deed in ("kill", "stop"):
        os.kill(here, DEEDS[deed])


def note_staged(path: str, block: bytes) -> None:
    """Write down the run of a block that is staged, and which images it holds."""
    import pyarrow.parquet as pq

    folder = faults()
    if folder is None:
        return
    table = pq.read_table(io.BytesIO(block), columns=["shard", "index_in_shard"])
    run_id = path.split("/")[-3]
    places = [[run_id, *row.values()] for row in table.to_pylist()]
    with (folder / "staged").open("a") as file:
        file.write(json.dumps(places) + "\n")


def add_steps(storage: Any) -> None:
    """`create_whole`, `write_whole` and `remove_tree` that are a step before and one after."""

    def stepped(name: str) -> None:
        function = getattr(storage, name)

        def both(fs: Any, path: str, *arguments: Any) -> Any:
            if name == "write_whole" and path.endswith("lock.json"):
                return function(fs, path, *arguments)  # a renewal comes whenever it comes
            step(f"before {name} {path}")
            result = function(fs, path, *arguments)
            if "/block-" in path:
                note_staged(path, arguments[0])
            step(f"after {name} {path}")
            return result

        setattr(storage, name, both)

    stepped("create_whole")
    stepped("write_whole")
    stepped("remove_tree")


def add_removals(store: Any) -> None:
    """Each object that is deleted from an OUTPUT is a step before and one after."""
    remove = store.OutputStore._remove

    def both(self: Any, name: str) -> None:
        step(f"before remove {name}")
        remove(self, name)
        step(f"after remove {name}")

    store.OutputStore._remove = both


def add_calls(placement: Any) -> None:
    """Detectors take as many calls at once as DETR_BATCH_CALLS says, as those on GPUs do."""
    placement.CPU_CALLS = int(os.environ.get("DETR_BATCH_CALLS", placement.CPU_CALLS))


def add_small_blocks(dataflow: Any) -> None:
    """Two or three images in a block, so that a small lake has several blocks."""
    dataflow.CPU_BLOCK_BYTES = 1 << 20


class Patching(importlib.abc.MetaPathFinder):
    """Changes a module when it is first imported."""

    def __init__(self, patches: dict[str, Callable[[Any], None]]):
        self.patches = patches

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        patch = self.patches.pop(name, None)
        spec = importlib.machinery.PathFinder.find_spec(name, path) if patch else None
        if patch is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Let all modules that are imported from now on react to faults."""
    patches: dict[str, Callable[[Any], None]] = {
        "PIL.Image": add_decoder,
        "jobs.cluster.placement": add_calls,
        "jobs.output.store": add_removals,
        "model.predictor": add_faulty_device,
        "pipeline.dataflow": add_small_blocks,
        "pipeline.storage.files": add_steps,
    }
    sys.meta_path.insert(0, Patching(patches))


if __name__ == "sitecustomize":  # Python found it, as its folder is in PYTHONPATH
    install()
