"""No document takes more memory than its entries need, whatever it holds."""

import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import ijson
import pytest

from jobs.coco import bounded_file
from jobs.coco.bounded_file import DEEPEST, BoundedFile
from pipeline.storage.errors import InputError

TEXTS = ["", "[[[", "}}", '"', "\\", '\\"[', "a\\", ",:{", "\n", "é[", "\ud83d\ude00"]
# Reads a file in a process of its own; prints the error, and the memory that it took in MB.
READ = """
import resource, sys
from pathlib import Path
from jobs.coco.reader import AnnotationFile, read_results
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
def peak():  # in KiB; getrusage would count that of the parent too
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
before = peak()
try:
    if sys.argv[2] == "results":
        list(read_results(Path(sys.argv[1]), "FILE", {1}))
    else:
        list(AnnotationFile(Path(sys.argv[1]), "FILE").annotations())
except (ValueError, RuntimeError) as error:
    print(type(error).__name__, error)
print((peak() - before) >> 10)
"""


def read_elsewhere(path: Path, kind: str) -> tuple[str, int]:
    """The error of reading a file, and the megabytes that it took."""
    command = [sys.executable, "-c", READ, str(path), kind]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    *error, taken = found.stdout.splitlines()
    return "".join(error), int(taken)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("[" * 400_000, "results"),
        ('[{"a":' * 200_000, "results"),
        ('{"annotations": ' + "[" * 400_000, "annotations"),
        ('{"info": ' + '{"a":' * 200_000, "annotations"),
        ('{"annotations": [{"bbox": ' + "[" * 20_000 + "]" * 20_000 + "}]}", "annotations"),
    ],
)
def test_nesting_takes_no_memory(content: str, kind: str, tmp_path: Path) -> None:
    """400 kB of brackets took 21 GB, 20,000 levels 1 GB."""
    file = tmp_path / "file.json"
    file.write_text(content)
    error, taken = read_elsewhere(file, kind)
    assert error.startswith("InputError FILE: its JSON is nested deeper than 100 levels")
    assert taken < 20


@pytest.mark.parametrize("digits", [400, 4_301, 100_000])
@pytest.mark.parametrize("place", ['[{"score": %s}]', "[%s]", '{"annotations": [{"x": %s}]}'])
def test_numbers_of_many_digits(place: str, digits: int, tmp_path: Path) -> None:
    """Of more than 4,300 digits Python makes no integer; ijson crashed then."""
    file = tmp_path / "file.json"
    file.write_text(place % ("9" * digits))
    error, taken = read_elsewhere(file, "results" if place.startswith("[") else "annotations")
    assert error.startswith("InputError FILE: a number has more than 64 bits")
    assert taken < 20


def read_by(size: int, content: bytes) -> None:
    file = BoundedFile(io.BytesIO(content), "FILE")
    while file.read(size):
        pass


def nested(rng: random.Random, levels: int) -> Any:
    """A document of exactly so many levels, among texts that look like levels."""
    if levels == 1:
        return [rng.choice(TEXTS) for _ in range(rng.randint(0, 3))]
    inner = nested(rng, levels - 1)
    around = [rng.choice(TEXTS) for _ in range(2)]
    return [around[0], inner, around[1]] if rng.random() < 0.5 else {around[0]: inner}


@pytest.mark.parametrize("case", range(40))
def test_levels_are_counted_outside_of_texts(case: int) -> None:
    """In pieces of any size, so that texts and backslashes are cut anywhere."""
    rng = random.Random(case)
    allowed = json.dumps(nested(rng, DEEPEST), ensure_ascii=case % 2 == 0).encode(
        "utf-8", "surrogatepass"
    )
    refused = json.dumps(nested(rng, DEEPEST + 1)).encode()
    for size in (1, 2, 3, 7, 64, 1 << 16):
        read_by(size, allowed)
        with pytest.raises(InputError, match="nested deeper than 100 levels"):
            read_by(size, refused)


ENTRY = {"id": 1, "text": "x" * 20, "numbers": [1, 2.5, {"a": [3]}]}


@pytest.mark.parametrize(
    "large",
    [
        {"text": "x" * 3000},
        {"numbers": [1] * 2000},
        {"numbers": [[1], [2]] * 600},
        {"a": 10**2999},
        {f"{number}": {} for number in range(600)},
    ],
)
@pytest.mark.parametrize("is_list", [True, False])
def test_an_entry_has_a_largest_size(
    is_list: bool, large: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_file, "MOST_ENTRY_BYTES", 2000)
    for entries, is_allowed in (([ENTRY] * 300, True), ([ENTRY, large, ENTRY], False)):
        document = entries if is_list else {"info": {"a": 1}, "images": entries, "more": [ENTRY]}
        content = json.dumps(document).encode()
        for size in (1, 50, 200):
            if is_allowed:
                read_by(size, content)
                continue
            with pytest.raises(InputError, match="FILE: an entry is larger than"):
                read_by(size, content)


def test_texts_and_numbers_outside_of_entries_have_a_largest_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounded_file, "MOST_ENTRY_BYTES", 2000)
    for content in (f'["{"x" * 3000}', f"[{'1' * 3000}", f'{{"{"x" * 3000}', " " * 3000 + "[]"):
        with pytest.raises(InputError, match="FILE: an entry is larger than"):
            read_by(100, content.encode())
    read_by(100, b"[" + b"1," * 5000 + b"1]")


def test_what_is_read_is_what_the_file_holds() -> None:
    content = json.dumps([ENTRY] * 1000).encode()
    file = BoundedFile(io.BytesIO(content), "FILE")
    assert list(ijson.items(file, "item", use_float=True)) == [ENTRY] * 1000
