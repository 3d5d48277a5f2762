"""A JSON file that is read an entry at a time, with errors that say which entry is wrong."""

import codecs
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import ijson

from jobs.coco.bounded_file import BoundedFile
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
_TOO_LARGE = ("integer overflow", "numeric (floating point) overflow")  # as yajl says it


class DamagedDocument(RuntimeError):
    """A file that is not valid JSON: cut off, garbled, or of another kind."""


@dataclass(frozen=True)
class Document:
    """A JSON file and its name in errors."""

    path: Path
    name: str

    def records(self, prefix: str, convert: Callable[[Entry], T]) -> Iterator[T]:
        """The entries of a list as records.

        InputError for the first entry that is wrong, once the rest was read to count such entries.
        DamagedDocument if the file is not valid JSON.
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
        return self._beginning()[:1]

    def refusal(self, message: str) -> InputError | DamagedDocument:
        """The error for a file that begins otherwise than it should.

        It is an InputError for JSON of another kind, a DamagedDocument for what is no JSON.
        """
        beginning = self._beginning()
        try:
            for _ in ijson.basic_parse(io.BytesIO(beginning), use_float=True):
                pass
        except ijson.JSONError as error:
            if not beginning or "premature EOF" not in _reason_of(error):
                return DamagedDocument(f"{message}. It is not JSON at all: was it copied whole?")
        return InputError(message)

    def has_list(self, name: str) -> bool:
        """Whether the document is an object with such a list. It is read event by event: slow."""
        with self._open() as file:
            events = ijson.parse(file, use_float=True)
            return any(event[:2] == (name, "start_array") for event in events)

    def _entries(self, prefix: str) -> Iterator[object]:
        try:
            with self._open() as file:
                yield from ijson.items(file, prefix, use_float=True)
        except ijson.JSONError as error:
            raise self._explained(_reason_of(error)) from error

    @contextmanager
    def _open(self) -> Iterator[BoundedFile]:
        """The file behind its byte order mark, which some editors write."""
        with self.path.open("rb") as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            yield BoundedFile(file, self.name)

    def _beginning(self) -> bytes:
        with self._open() as file:
            return file.read(1 << 16).lstrip()

    def _explained(self, message: str) -> InputError | DamagedDocument:
        """The error for broken JSON: what is wrong and where. `message` is yajl's, with an excerpt.

        Numbers that JSON or this reader does not have are no damage: somebody wrote them so.
        """
        reason, excerpt = [*message.splitlines(), "", ""][:2]
        place = self._last_entry()
        if "premature EOF" in reason:
            comma = "," if place else ""
            return DamagedDocument(
                f"{self.name}: the file ends too early{comma}{place}: was it copied whole?"
            )
        near = f", near {excerpt.strip()!r}" if excerpt.strip() else ""
        if reason.endswith(_TOO_LARGE):
            return InputError(f"{self.name}: a number has more than 64 bits{place}{near}")
        number = _NOT_JSON_NUMBER.search(excerpt)
        broken = f"{self.name}: the file is not valid JSON{place}"
        if number and reason.startswith("lexical error"):
            return InputError(f"{broken}: {number[0]} is not a number in JSON{near}")
        return DamagedDocument(f"{broken}: {reason}{near}")

    def _last_entry(self) -> str:
        """Where the JSON becomes invalid: " in annotation 12", " after annotation 12"."""
        counts: Counter[str] = Counter()
        place = current = ""
        try:
            with self._open() as file:
                for prefix, event, value in ijson.parse(file, use_float=True):
                    if prefix in _ENTRY_NAMES and event != "map_key":
                        is_end = event in ("end_map", "end_array")
                        counts[prefix] += not is_end
                        current = prefix
                        where = "after" if is_end else "in"
                        place = f" {where} {_ENTRY_NAMES[prefix]} {counts[prefix]}"
                    elif current and prefix == f"{current}.image_id":
                        place += f" (image_id {shown(value)})"
        except ijson.JSONError:
            pass  # the place is what is wanted
        return place


def _reason_of(error: ijson.JSONError) -> str:
    """The message of yajl, which is in bytes where the file is not UTF-8."""
    message = error.args[0] if error.args else ""
    return message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)


def _described(entry_name: str, number: int, entry: object) -> str:
    """An entry for errors: `annotation 12 (id 907, image_id 10)`."""
    ids = ("id", "image_id", "file_name")
    fields = entry if isinstance(entry, dict) else {}
    given = [f"{name} {shown(fields[name])}" for name in ids if fields.get(name) is not None]
    return f"{entry_name} {number}" + (f" ({', '.join(given)})" if given else "")
