"""Short names of images, by which people tell them apart."""

import re
from collections import Counter
from collections.abc import Iterable

from pipeline.storage.urls import printable

LONGEST = 48  # most characters of a short name; the middle of a longer one is left out
_SEPARATOR = re.compile(r"[/\\]")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[/\\]|[A-Za-z]:[/\\]")
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def shorten_names(names: Iterable[str], inputs: Iterable[str] = ()) -> dict[str, str]:
    """Return for each name the path below that one of `inputs` that it lies in.

    A name elsewhere is the shortest end of its path that no other of the names has, or stays whole
    if it is relative or the end of another. The middle of long names is left out, unless two would
    be the same then.
    """
    folders = sorted({one.rstrip("/") for one in inputs}, key=len, reverse=True)
    below = {name: _find_below(name, folders) for name in set(names)}
    parts = {
        name: _SEPARATOR.split(printable(name).rstrip("/\\"))
        for name, found in below.items()
        if found is None
    }
    ends = Counter(
        tuple(path[-depth:]) for path in parts.values() for depth in range(1, len(path) + 1)
    )
    whole = {
        name: "/".join(_unique_end(parts[name], ends)) if found is None else printable(found)
        for name, found in below.items()
    }
    short = {name: _abbreviate(text) for name, text in whole.items()}
    times = Counter(short.values())
    return {name: text if times[text] == 1 else whole[name] for name, text in short.items()}


def _find_below(name: str, folders: Iterable[str]) -> str | None:
    """The path of a name below the first of `folders` that has it; None if none has.

    One of `folders` may be a file, which its images are named after (`t.tar#1.jpg`).
    """
    for folder in folders:
        if name.startswith(f"{folder}/"):
            return name[len(folder) + 1 :]
        if name == folder or name.startswith(f"{folder}#"):
            return name[folder.rfind("/") + 1 :]
    return None if _ABSOLUTE.match(name) else name


def _unique_end(path: list[str], ends: Counter[tuple[str, ...]]) -> list[str]:
    for depth in range(1, len(path)):
        if ends[tuple(path[-depth:])] == 1:
            return path[-depth:]
    return path


def _abbreviate(name: str) -> str:
    """Leave the middle of a long name out: of its folders, if there is room for what is last."""
    if len(name) <= LONGEST:
        return name
    room = LONGEST - len(_ELLIPSIS)
    last = len(name) - name.rfind("/") if "/" in name else 0
    end = max(room // 2, min(last, room - room // 4))
    return f"{name[: room - end]}{_ELLIPSIS}{name[-end:]}"
