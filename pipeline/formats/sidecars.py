"""What a webdataset tar carries along: the members KEY.json beside the images of the same key.

webdataset writes the members of a sample one after the other. So an image waits only for the next
member, and the archive is read once. Where a json is elsewhere, all of them are read in a pass of
their own.
"""

import json
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

from pipeline.carry.columns import CARRIED, NOT_CARRIED, Carry
from pipeline.carry.values import values_of_json
from pipeline.formats.members import open_member, readable_name
from pipeline.formats.tar_entries import Content, is_regular, open_tar, tar_entries
from pipeline.isolation.child import Row
from pipeline.schema import Member
from pipeline.storage.access import use_input_access
from pipeline.storage.files import open_object

MOST_JSON_BYTES = 1 << 20  # of one member; a larger one is not read
MOST_KEPT_BYTES = 64 << 20  # of all members whose images were not met yet, as they lie in the tar
SAMPLES_LOOKED_AT, MOST_NAMES = 1000, 1000  # for the names in them
_ENDING = ".json"


def key_of_name(name: str) -> str:
    """webdataset's key of a member: its path up to the first dot of the file name."""
    folder, _, last = name.removeprefix("./").rpartition("/")
    key = last.split(".", 1)[0]
    return f"{folder}/{key}" if folder else key


def _is_sidecar(name: str) -> bool:
    last = posixpath.basename(name).lower()
    return last.endswith(_ENDING) and last.find(".") == len(last) - len(_ENDING)


class Sidecars:
    """The carried values of the samples of a tar. `reopen` opens the archive once more."""

    def __init__(self, carry: Carry, reopen: Callable[[], AbstractContextManager[BinaryIO]]):
        self.carry, self._reopen = carry, reopen
        self._rows: dict[str, Row] = {}  # by key
        self._bytes: dict[str, int] = {}  # of the members of `_rows`
        self._kept = 0  # the sum of `_bytes`
        self._is_complete = False  # whether all members were read
        self._is_full = False  # whether some of them were left out

    def note(self, name: str, content: Content) -> None:
        """Read a member of the archive, if it is a json of a sample. The first of a key counts."""
        if self._is_complete or not _is_sidecar(name):
            return
        key, size = key_of_name(readable_name(name)), min(content.size, MOST_JSON_BYTES)
        if key in self._rows:
            return
        if self._kept + size > MOST_KEPT_BYTES:
            self._is_full = True
            return
        self._rows[key], self._bytes[key] = self._row_of(content), size
        self._kept += size

    def _row_of(self, content: Content) -> Row:
        """What to add to the rows of a sample. A damaged member carries nothing."""
        document = _document(content)
        if document is None:
            return {CARRIED: {}, NOT_CARRIED: len(self.carry.columns)}
        values, lost = values_of_json(document, self.carry)
        return {CARRIED: values, NOT_CARRIED: lost}

    def knows(self, key: str) -> bool:
        """Whether nothing that follows in the archive changes the values of a sample."""
        return self._is_complete or key in self._rows

    def row_of(self, key: str) -> Row:
        """What to add to the rows of a sample. The archive is read once more if it was not met."""
        if not self.knows(key):
            self._read_all()
        lost = len(self.carry.columns) if self._is_full else 0
        return self._rows.get(key, {CARRIED: {}, NOT_CARRIED: lost})

    def forget(self, key: str) -> None:
        """Drop the values of a sample whose images were met, unless all are kept."""
        if not self._is_complete and self._rows.pop(key, None) is not None:
            self._kept -= self._bytes.pop(key)

    def _read_all(self) -> None:
        self._rows, self._bytes, self._kept, self._is_full = {}, {}, 0, False
        try:
            with self._reopen() as file:
                archive = open_tar(file)
                for entry in tar_entries(archive):
                    if is_regular(entry):
                        self.note(entry.name, Content(archive, entry))
        except tarfile.ReadError:  # the images behind it are lost too, and their row says why
            pass
        self._is_complete = True


def _document(content: Content) -> dict[str, Any] | None:
    """The JSON object that a member holds; None if it is damaged or too large."""
    if content.size > MOST_JSON_BYTES:
        return None
    try:
        found = json.loads(content.whole())
    except (ValueError, RecursionError, tarfile.ReadError):
        return None
    return found if isinstance(found, dict) else None


def name_json_columns(member: Member, access: str | None) -> Iterator[Row]:
    """Yield a row for each name in the first json members of a tar.

    The archive is read, so this is for a child process. Raises the errors of archives and stores.
    """
    use_input_access(access)
    names: dict[str, None] = {}
    left = SAMPLES_LOOKED_AT
    with open_object(*open_member(member, "shard")) as file:
        archive = open_tar(file)
        for entry in tar_entries(archive):
            if is_regular(entry) and _is_sidecar(entry.name):
                names |= dict.fromkeys(_document(Content(archive, entry)) or {})
                left -= 1
                if not left or len(names) > MOST_NAMES:
                    break
    for name in names:
        yield {"column": name}
