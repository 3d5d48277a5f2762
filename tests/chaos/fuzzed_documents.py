"""Changes documents at random and reads them: a process of its own, whose memory is bounded.

It prints how much memory it took. An error that is not one of ours ends it, with the seed.
"""

import argparse
import contextlib
import hashlib
import io
import json
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.cli import main
from jobs.output import paths
from jobs.output.documents import seal, unseal

HARD_LIMIT = 6 << 30  # bytes of addresses; the machine stays usable if a bound fails
IMAGES = [
    {"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 80} for number in range(3)
]
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
OBJECTS = [
    {
        "id": number,
        "image_id": number % 3,
        "category_id": 1 + number % 2,
        "bbox": [1.5, 2, 30, 40],
        "area": 1200,
        "iscrowd": 0,
        "segmentation": [[1, 2, 3, 4, 5, 6]],
    }
    for number in range(5)
]
TRUTH = {"images": IMAGES, "annotations": OBJECTS, "categories": CATEGORIES, "info": {"year": 1}}
RESULTS = [
    {"image_id": n % 3, "category_id": 1, "bbox": [1, 2, 3, 4.5], "score": 0.9 - n / 10}
    for n in range(4)
]


def hostile_value(rng: random.Random) -> Any:
    """A value that nobody expects."""
    deep: Any = 0
    for _ in range(rng.choice([3, 90, 400])):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice(
        [
            *(None, True, False, 0, -1, 5, 2**31, 2**63, -(2**63) - 1, 10**400, 10**4200, 1e308),
            *(float("nan"), float("-inf"), "", "x", "1e999", "9" * 5000, "\ud800", "\0", "../../x"),
            *([], {}, [[]], [1] * 50, {"a": 1}, "a" * 100_000, deep),
        ]
    )


def nodes_of(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every place in a document, as (container, key or index)."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            nodes_of(value[key], found)
    return found


def changed(rng: random.Random, document: Any) -> Any:
    """A copy of a document with some places changed."""
    copy = json.loads(json.dumps(document))
    for _ in range(rng.randint(1, 3)):
        places = nodes_of(copy, [])
        if not places:
            return copy
        container, key = rng.choice(places)
        action = rng.choice(["replace", "replace", "delete", "repeat", "rename"])
        if action == "delete":
            del container[key]
        elif action == "repeat" and isinstance(container, list):
            container.insert(key, container[key])
        elif action == "rename" and isinstance(container, dict):
            container[rng.choice(["", "x", "id", "item", "format"])] = container.pop(key)
        else:
            container[key] = hostile_value(rng)
    return copy


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes of which some are changed, in one case of four; else the same bytes."""
    if rng.random() < 0.75 or not data:
        return data
    at = rng.randrange(len(data))
    junk = rng.choice([b"", b"[" * 5000, b"\xff", b'"', b"\\", b"9" * 5000, b"\0", b"}" * 9])
    return rng.choice([data[:at], data[:at] + junk + data[at + 1 :]])


class Desk:
    """An OUTPUT of one import, and the command line over it."""

    def __init__(self, folder: Path):
        self.folder, self.good = folder, folder / "good"
        self.truth, self.results = folder / "truth.json", folder / "results.json"
        self.output = folder / "out"
        self.truth.write_text(json.dumps(TRUTH))
        self.results.write_text(json.dumps(RESULTS))
        assert self.run("import", str(self.results), str(self.good), *self.options()) == 0
        self.restore()

    def options(self) -> list[str]:
        return ["--annotations", str(self.truth), "--model", "m"]

    def restore(self) -> None:
        """Make OUTPUT, and the files that are imported, what they were."""
        shutil.rmtree(self.output, ignore_errors=True)
        shutil.copytree(self.good, self.output)
        self.truth.write_text(json.dumps(TRUTH))
        self.results.write_text(json.dumps(RESULTS))

    def run(self, *words: str) -> int:
        """Run a command; it may fail, but only in one line that is meant for people."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = main(list(words))
        line = said.getvalue()
        assert code in (0, 1, 2), code
        assert "internal error" not in line and "Traceback" not in line, line[-2000:]
        assert code == 0 or (line.count("\n") == 1 and len(line) < 5000), line[-2000:]
        return code

    def the_file(self, pattern: str) -> Path:
        (found,) = self.output.glob(pattern)
        return found


def fuzz_truth(rng: random.Random, desk: Desk) -> None:
    content = json.dumps(changed(rng, TRUTH)).encode()
    desk.truth.write_bytes(changed_bytes(rng, content))
    desk.run("evaluate", str(desk.output), str(desk.truth))
    desk.run("import", str(desk.results), str(desk.folder / "fresh"), *desk.options())
    shutil.rmtree(desk.folder / "fresh", ignore_errors=True)


def fuzz_results(rng: random.Random, desk: Desk) -> None:
    content = json.dumps(changed(rng, RESULTS)).encode()
    desk.results.write_bytes(changed_bytes(rng, content))
    desk.run("import", str(desk.results), str(desk.output), *desk.options())


def read_output(rng: random.Random, desk: Desk) -> None:
    """Commands that read a document which whoever can write OUTPUT has changed."""
    out, truth = str(desk.output), str(desk.truth)
    run_id = next(desk.good.glob("images/run=*")).name.removeprefix("run=")
    desk.run(
        *rng.choice(
            [
                ("runs", out),
                ("runs", out, "--show", run_id),
                ("runs", out, "--verify"),
                ("query", out, "SELECT count(*) FROM latest"),
                ("evaluate", out, truth),
                ("import", truth, out, *desk.options()),
                ("compact", out),
                ("report", out),
            ]
        )
    )


def fuzz_manifest(rng: random.Random, desk: Desk) -> None:
    """A manifest with the digest that the log names, as an attacker writes it."""
    file = desk.the_file("_runs/*/manifest-*.json")
    data = changed_bytes(rng, json.dumps(changed(rng, json.loads(file.read_bytes()))).encode())
    file.write_bytes(data)
    entry = desk.output / paths.entry(2)
    content = unseal("entry", entry.read_bytes())
    content["adds"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    entry.write_bytes(seal(content))
    read_output(rng, desk)


def fuzz_entry(rng: random.Random, desk: Desk) -> None:
    entry = desk.output / paths.entry(rng.choice([1, 2]))
    content = changed(rng, unseal("entry", entry.read_bytes()))
    entry.write_bytes(changed_bytes(rng, seal(content)))
    read_output(rng, desk)


def fuzz_record(rng: random.Random, desk: Desk) -> None:
    """run.json as versions before 0.2 wrote it: without a digest."""
    file = desk.the_file("_runs/*/run.json")
    record = json.loads(file.read_bytes())
    del record["sha256"]
    file.write_bytes(changed_bytes(rng, json.dumps(changed(rng, record)).encode()))
    read_output(rng, desk)


FUZZERS: dict[str, Callable[[random.Random, Desk], None]] = {
    "truth": fuzz_truth,
    "results": fuzz_results,
    "manifest": fuzz_manifest,
    "entry": fuzz_entry,
    "record": fuzz_record,
}


def fuzz(kind: str, seeds: range, folder: Path) -> None:
    """Run one kind of cases. AssertionError names the seed of the first that fails."""
    desk = Desk(folder)
    for seed in seeds:
        try:
            FUZZERS[kind](random.Random(seed), desk)
        except BaseException as error:
            raise AssertionError(f"{kind}, seed {seed}") from error
        desk.restore()


def peak_megabytes() -> int:
    """The most memory that this process had. `getrusage` counts that of its parent too."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) >> 10


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=FUZZERS)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (HARD_LIMIT, HARD_LIMIT))
    fuzz(given.kind, range(given.first, given.first + given.count), given.folder)
    print(peak_megabytes())
