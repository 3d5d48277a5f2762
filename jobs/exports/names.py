"""Safe and unique file names for images.

They are made from image ids, which may hold any text.
"""

import hashlib
import re
import sqlite3
import unicodedata

from pipeline.formats.image_names import IMAGE_SUFFIXES
from pipeline.storage.errors import OutputError

# Letters and digits of all scripts, and signs without a meaning to shells and file systems.
_UNSAFE = re.compile(r"[^\w.,+=@ -]|^[. -]|[. ]$")
# names that are reserved on Windows
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
PART_BYTES, NAME_BYTES = 150, 600  # file systems stop at 255 and about 1,000


def below(image_id: str, shard: str, source: str) -> str:
    """Return the path of an image below INPUT `source`: `album/a.jpg`, `shards/b.tar/key`.

    For an image from elsewhere this is all of its URL after the scheme.
    """
    if image_id.startswith(f"{shard}#"):
        return f"{below(shard, '', source)}/{image_id[len(shard) + 1 :]}"
    for folder in (source.rstrip("/"), source.rpartition("/")[0]):
        if folder and image_id.startswith(f"{folder}/"):
            return image_id[len(folder) + 1 :]
    return image_id.split("://", 1)[-1].lstrip("/")


def safe_part(part: str) -> str:
    """Make one part of a path safe.

    The result cannot lead to another folder, hide the file or control a terminal.
    """
    part = _UNSAFE.sub("_", unicodedata.normalize("NFC", part))
    part = f"_{part}" if _RESERVED.match(part) else part
    return part.encode()[:PART_BYTES].decode(errors="ignore")


class SafeNames:
    """Relative paths for images, unique even where capitals do not count.

    A name that had to be changed, or that was given before, gets a part of its image's hash. The
    given names are in a temporary file of SQLite, so that any number of images fits.
    """

    def __init__(self, suffix: str = ""):
        """With a `suffix` (".txt"), the labels of each image get a file of their own beside it."""
        self.suffix = suffix
        self._given = sqlite3.connect("")
        self._given.execute("PRAGMA synchronous = OFF")
        self._given.execute("CREATE TABLE given (name TEXT PRIMARY KEY) WITHOUT ROWID")

    def __enter__(self) -> "SafeNames":
        return self

    def __exit__(self, *_: object) -> None:
        self._given.close()

    def name(self, image_id: str, shard: str, source: str) -> tuple[str, str]:
        """Return unused names for an image (`a/b.jpg`) and for its labels (`a/b.txt`).

        The same images in the same order get the same names. OutputError if a shard holds several
        images with one id.
        """
        wanted = below(image_id, shard, source)
        *folders, file = [safe_part(part) for part in wanted.split("/") if part] or [""]
        if self.suffix:  # no folder may have a name that a file could get
            ending = re.compile(rf"{re.escape(self.suffix)}$", re.IGNORECASE)
            folders = [ending.sub("_", folder) for folder in folders]
        path = "/".join([*folders, file])
        changed = path != wanted or not file
        if len(path.encode()) > NAME_BYTES:
            path, changed = file, True
        stem, end = _split_suffix(path)
        digest = hashlib.sha256(f"{shard}\0{image_id}".encode()).hexdigest()
        for mark in (*(() if changed else ("",)), f"-{digest[:8]}", f"-{digest}"):
            name = f"{stem}{mark}"
            if self._reserve_name(name + (self.suffix or end)):
                return name + end, name + (self.suffix or end)
        raise OutputError(f"{shard} holds several images named {image_id}: which is which?")

    def _reserve_name(self, name: str) -> bool:
        key = (name.casefold(),)
        return self._given.execute("INSERT OR IGNORE INTO given VALUES (?)", key).rowcount == 1


def _split_suffix(path: str) -> tuple[str, str]:
    """Split a path into the part before its image suffix, and that suffix."""
    stem, dot, end = path.rpartition(".")
    return (stem, dot + end) if stem and f".{end.lower()}" in IMAGE_SUFFIXES else (path, "")
