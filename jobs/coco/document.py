"""A JSON file that is read an entry at a time, with errors that say which entry is wrong."""

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import ijson

from jobs.coco.fields import Entry, WrongField, object_of, shown
from pipeline.storage.errors import InputError

T = TypeVar("T")
# What one entry is called, by ijson's prefix of the entries of a list.
_ENTRY_NAMES = {
    "images.item": "image",
    "categories.item": "category",
    "annotations.item": "annotation",
    "item": "entry",
}
_NOT_JSON_NUMBER = re.compile(r'(?<![\w"])-?(NaN|Infinity)\b')  # as json.dump of Python writes it


@dataclass(frozen=True)
class Document:
    """A JSON file and its name in errors."""

    path: Path
    name: str

    def records(self, prefix: str, convert: Callable[[Entry], T]) -> Iterator[T]:
        """The entries of a list as records.

        InputError for the first entry that is wrong, once the rest was read to count such entries.
        """
        first: tuple[str, WrongField] | None = None
        wrong: Counter[str] = Counter()
        for number, entry in enumerate(self._entries(prefix), 1):
            try:
                record = convert(object_of(entry))
            except WrongField as error:
                first = first or (_described(_ENTRY_NAMES[prefix], number, entry), error)
                wrong[error.field] += 1
                continue
            if first is None:
                yield record
        if first is not None:
            place, reason = first
            count = wrong[reason.field]
            more = f" (one of {count} such entries)" if count > 1 else ""
            raise InputError(f"{self.name}: {place}: {reason}{more}")

    def first_byte(self) -> bytes:
        """The first that is no space; nothing of an empty file."""
        with self._open() as file:
            return file.read(4096).lstrip()[:1]

    def has_list(self, name: str) -> bool:
        """Whether the document is an object with such a list. It is read event by event: slow."""
        with self._open() as file:
            return any(event[:2] == (name, "start_array") for event in ijson.parse(file))

    def _entries(self, prefix: str) -> Iterator[object]:
        try:
            with self._open() as file:
                yield from ijson.items(file, prefix, use_float=True)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise InputError(f"{self.name}: {self._broken_json(str(error))}") from error

    def _open(self) -> BinaryIO:
        """The file behind its byte order mark, which some editors write."""
        file = self.path.open("rb")
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        return file

    def _broken_json(self, message: str) -> str:
        """What is wrong with the JSON and where, from a message of yajl's with an excerpt."""
        reason, excerpt = [*message.splitlines(), "", ""][:2]
        place = self._last_entry()
        if "premature EOF" in reason:
            return f"the file ends too early{place and ','}{place}: was it copied whole?"
        number = _NOT_JSON_NUMBER.search(excerpt)
        if number and reason.startswith("lexical error"):
            reason = f"{number[0]} is not a number in JSON"
        near = f", near {excerpt.strip()!r}" if excerpt.strip() else ""
        return f"the file is not valid JSON{place}: {reason}{near}"

    def _last_entry(self) -> str:
        """Where the JSON becomes invalid: " in annotation 12", " after annotation 12"."""
        counts: Counter[str] = Counter()
        place = current = ""
        try:
            with self._open() as file:
                for prefix, event, value in ijson.parse(file):
                    if prefix in _ENTRY_NAMES and event != "map_key":
                        is_end = event in ("end_map", "end_array")
                        counts[prefix] += not is_end
                        current = prefix
                        where = "after" if is_end else "in"
                        place = f" {where} {_ENTRY_NAMES[prefix]} {counts[prefix]}"
                    elif current and prefix == f"{current}.image_id":
                        place += f" (image_id {shown(value)})"
        except (ijson.JSONError, UnicodeDecodeError):
            pass  # the place is what is wanted
        return place


def _described(entry_name: str, number: int, entry: object) -> str:
    """An entry for errors: `annotation 12 (id 907, image_id 10)`."""
    ids = ("id", "image_id", "file_name")
    fields = entry if isinstance(entry, dict) else {}
    given = [f"{name} {shown(fields[name])}" for name in ids if fields.get(name) is not None]
    return f"{entry_name} {number}" + (f" ({', '.join(given)})" if given else "")
