"""Pairs of a class and a value, as --thresholds and --rename take them: in words or in a file.

`read_files` puts the pairs of files in the place of the files' names. So the record of a run has
what decided its labels, and a cluster needs no file of the machine that submits.
"""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from jobs.boxes.options import BoxOptions, option_of
from pipeline.storage.errors import InputError
from pipeline.storage.urls import has_control_character, mask, printable

# Of a file, and of its pairs as words. Both options fit into the 128 KiB that Linux gives to one
# argument of a process. A threshold for each of LVIS' 1,203 classes takes 35 kB.
MOST_BYTES = 56 << 10
_ONE_SCORE = "; one score of all classes is that of --score-threshold, in `export` of --min-score"
Options = TypeVar("Options", bound=BoxOptions)
Pairs = list[tuple[str, Any]]


def read_files(options: Options) -> Options:
    """The options with pairs in the place of the names of files.

    Raises InputError for a file that cannot be read, or that holds no pairs.
    """
    changes: dict[str, Any] = {}
    for name in ("thresholds", "rename"):
        given = getattr(options, name)
        if given is None:
            continue
        pairs = parse_pairs(given, option_of(name))
        if name == "thresholds":
            for word, value in pairs:
                score_of(word, value)  # raises for a wrong one before weights are fetched
        if not _is_inline(given):
            changes[name] = json.dumps(dict(pairs), ensure_ascii=False)
            if len(changes[name].encode()) > MOST_BYTES:
                raise _too_large(f"{option_of(name)} {mask(given)}")
    return replace(options, **changes) if changes else options


def parse_pairs(given: str, option: str) -> Pairs:
    """The pairs of an option; values are texts, or numbers where JSON has them.

    Raises InputError if it has none, has a class twice, or is a file that cannot be read.
    """
    if _is_inline(given):
        return parse_words(given, option)
    if "://" not in given and not Path(given).exists():
        hint = _ONE_SCORE if option == "--thresholds" else ""
        raise InputError(
            f"{option} {printable(given)}: there is no such file, and it is no CLASS=VALUE{hint}"
        )
    where, text = f"{option} {mask(given)}", _read_text(given, option)
    is_json = text.lstrip().startswith("{")
    return _checked(_parse_json(text, where) if is_json else _parse_lines(text, where), where)


def parse_words(text: str, where: str) -> Pairs:
    """The pairs of an option that are no file. Raises InputError, which begins with `where`."""
    if text.lstrip().startswith("{"):
        return _checked(_parse_json(text, where), where)
    return _checked([_split(part, where) for part in text.split(",") if part.strip()], where)


def _checked(pairs: Pairs, where: str) -> Pairs:
    """The pairs. Raises InputError if there is none, a name stands twice, or one is no text."""
    if not pairs:
        raise InputError(f"{where}: it names no class")
    seen: set[str] = set()
    for name, value in pairs:
        if unreadable := next(filter(has_control_character, (name, str(value))), None):
            shown = printable(unreadable).replace("\n", "\\n")
            raise InputError(f"{where}: {shown} has a control character or half a character")
        if name in seen:
            raise InputError(f"{where}: {printable(name)} stands there twice: give it once")
        seen.add(name)
    return pairs


def recorded_thresholds(options: Mapping[str, Any]) -> list[float]:
    """The thresholds of single classes in recorded options, in which no file is named.

    Raises InputError if they are damaged.
    """
    given = options.get("thresholds")
    pairs = [] if given is None else parse_words(given, "--thresholds")
    return [score_of(word, value) for word, value in pairs]


def score_of(word: str, value: Any) -> float:
    """The threshold of the class `word`. Raises InputError if it is none."""
    try:
        least = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        least = math.nan
    if not 0 <= least < 1:
        text = printable(f"{word}={value}")
        raise InputError(f"--thresholds {text}: give a score of 0 to below 1")
    return least


def _is_inline(given: str) -> bool:
    """Whether an option has the pairs themselves, and not the name of a file."""
    if given.lstrip().startswith("{"):
        return True
    return "=" in given and "://" not in given and not Path(given).exists()


def _split(part: str, where: str) -> tuple[str, str]:
    name, sign, value = part.rpartition("=")
    if not sign or not name.strip() or not value.strip():
        raise InputError(f"{where}: {printable(part.strip())} is no pair: give CLASS=VALUE")
    return name.strip(), value.strip()


def _parse_json(text: str, where: str) -> Pairs:
    try:
        found = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: it is no valid JSON ({error})") from error
    if not isinstance(found, _Object):
        raise InputError(f"{where}: give one JSON object of classes and their values")
    return [(name.strip(), value) for name, value in found]


class _Object(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that a name that stands twice is seen."""


def _parse_lines(text: str, where: str) -> Pairs:
    """The pairs of lines `class,value`; blank lines and lines that begin with # are left out."""
    pairs: Pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        cells: list[str] = next(csv.reader([line], skipinitialspace=True))
        values = [cell.strip() for cell in cells]
        if len(values) != 2 or not all(values):
            raise InputError(f"{where}, line {number}: it is no pair: give CLASS,VALUE")
        pairs.append((values[0], values[1]))
    return pairs


def _read_text(url: str, option: str) -> str:
    """A small text in UTF-8 at a path or URL."""
    from pipeline.storage.explained_errors import explain_errors
    from pipeline.storage.files import open_location, read_object

    with explain_errors(option, url):
        data = read_object(*open_location(url, option), MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise _too_large(f"{option} {mask(url)}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{option} {mask(url)}: it is no text in UTF-8 ({error})") from error


def _too_large(where: str) -> InputError:
    return InputError(f"{where}: it is larger than {MOST_BYTES >> 10} KiB, which is no such file")
