"""Names for files that are safe and unique, made from image ids, which are anyone's words."""

import hashlib
import re
import sqlite3
import unicodedata

from pipeline.plan.listing import IMAGE_SUFFIXES
from pipeline.storage.errors import OutputError

# Letters and digits of all scripts, and signs that no shell and no file system takes for more.
_UNSAFE = re.compile(r"[^\w.,+=@ -]|^[. -]|[. ]$")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # on Windows
PART_BYTES, NAME_BYTES = 150, 600  # file systems stop at 255 and about 1,000


def below(image_id: str, shard: str, source: str) -> str:
    """Where an image lies below INPUT `source`: `album/a.jpg`, `shards/b.tar/key`.

    Of an image from elsewhere all that its URL says behind the scheme.
    """
    if image_id.startswith(f"{shard}#"):
        return f"{below(shard, '', source)}/{image_id[len(shard) + 1 :]}"
    for folder in (source.rstrip("/"), source.rpartition("/")[0]):
        if folder and image_id.startswith(f"{folder}/"):
            return image_id[len(folder) + 1 :]
    return image_id.split("://", 1)[-1].lstrip("/")


def safe_part(part: str) -> str:
    """One part of a path without what could lead elsewhere, hide it or drive a terminal."""
    part = _UNSAFE.sub("_", unicodedata.normalize("NFC", part))
    part = f"_{part}" if _RESERVED.match(part) else part
    return part.encode()[:PART_BYTES].decode(errors="ignore")


class SafeNames:
    """Relative paths for images, no two alike even where capitals do not count.

    A name that had to be changed, or that was given before, gets a part of its image's hash. What
    was given is kept in SQLite's own temporary file, so that any number of images fit.
    """

    def __init__(self, suffix: str = ""):
        """With `suffix` (".txt") labels get a file of their own beside the picture's name."""
        self.suffix = suffix
        self._given = sqlite3.connect("")
        self._given.execute("PRAGMA synchronous = OFF")
        self._given.execute("CREATE TABLE given (name TEXT PRIMARY KEY) WITHOUT ROWID")

    def __enter__(self) -> "SafeNames":
        return self

    def __exit__(self, *_: object) -> None:
        self._given.close()

    def name(self, image_id: str, shard: str, source: str) -> tuple[str, str]:
        """Names, not given before, of a picture (`a/b.jpg`) and of its labels (`a/b.txt`).

        The same images in the same order get the same names.
        """
        wanted = below(image_id, shard, source)
        *folders, file = [safe_part(part) for part in wanted.split("/") if part] or [""]
        if self.suffix:  # no folder may have the name that a file could have
            ending = re.compile(rf"{re.escape(self.suffix)}$", re.IGNORECASE)
            folders = [ending.sub("_", folder) for folder in folders]
        path = "/".join([*folders, file])
        changed = path != wanted or not file
        if len(path.encode()) > NAME_BYTES:
            path, changed = file, True
        stem, end = _split(path)
        digest = hashlib.sha256(f"{shard}\0{image_id}".encode()).hexdigest()
        for mark in (*(() if changed else ("",)), f"-{digest[:8]}", f"-{digest}"):
            name = f"{stem}{mark}"
            if self._take(name + (self.suffix or end)):
                return name + end, name + (self.suffix or end)
        raise OutputError(f"{shard} holds several images named {image_id}: which is which?")

    def _take(self, name: str) -> bool:
        key = (name.casefold(),)
        return self._given.execute("INSERT OR IGNORE INTO given VALUES (?)", key).rowcount == 1


def _split(path: str) -> tuple[str, str]:
    """A path without its image suffix, and that suffix."""
    stem, dot, end = path.rpartition(".")
    return (stem, dot + end) if stem and f".{end.lower()}" in IMAGE_SUFFIXES else (path, "")
