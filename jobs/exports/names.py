"""Safe and unique file names for images.

They are made from image ids, which may hold any text.
"""

import hashlib
import re
import sqlite3
import unicodedata
from dataclasses import dataclass

from pipeline.formats.image_names import IMAGE_SUFFIXES
from pipeline.storage.errors import OutputError
from pipeline.storage.urls import has_control_character

# Letters and digits of all scripts, and signs without a meaning to shells and file systems.
_UNSAFE = re.compile(r"[^\w.,+=@ -]|^[. -]|[. ]$")
# names that are reserved on Windows
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
PART_BYTES, NAME_BYTES = 150, 600  # file systems stop at 255 and about 1,000
# The suffix of images whose names have none, such as members of archives. Readers of images look at
# the first bytes, but they find files by their suffixes.
NEW_SUFFIX = ".jpg"
# Suffixes that few readers know, and those that stand for the same formats.
COMMON_SUFFIXES = {
    **dict.fromkeys((".jfif", ".jpe", ".jif", ".jfi", ".jps", ".pjp", ".pjpeg"), ".jpg"),
    **dict.fromkeys((".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jph"), ".jp2"),
    **dict.fromkeys((".heics", ".hif"), ".heic"),
    **dict.fromkeys((".btf", ".tf8"), ".tif"),
    ".apng": ".png",
    ".dib": ".bmp",
    ".avifs": ".avif",
    ".heifs": ".heif",
}


@dataclass(frozen=True)
class NameRules:
    """What the names of a format must be like beyond being safe and unique."""

    labels: str = ""  # ".txt": the labels of each image get a file of their own beside it
    reserved: str = ""  # a name that no folder may have
    has_files: bool = True  # whether images get files of these names, and so suffixes
    own: bool = False  # images that are files keep their names, since readers look for them there
    flat: bool = False  # all in one folder


PLAIN = NameRules(has_files=False)
OWN = NameRules(has_files=False, own=True)


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
    return _cut(_without_unsafe_signs(part), PART_BYTES)


def _without_unsafe_signs(part: str) -> str:
    part = _UNSAFE.sub("_", unicodedata.normalize("NFC", part))
    return f"_{part}" if _RESERVED.match(part) else part


def _cut(text: str, most_bytes: int) -> str:
    return text.encode()[:most_bytes].decode(errors="ignore")


class SafeNames:
    """Relative paths for images, unique even where capitals do not count.

    By the rules `own`, files keep their names, which capitals alone may tell apart. A name that had
    to be changed, or that was given before, gets a part of its image's hash. The given names are in
    a temporary file of SQLite, so that any number of images fits.
    """

    def __init__(self, rules: NameRules = PLAIN):
        self.rules = rules
        self._given = sqlite3.connect("")
        self._given.execute("PRAGMA synchronous = OFF")
        self._given.execute("CREATE TABLE given (name TEXT PRIMARY KEY) WITHOUT ROWID")

    def __enter__(self) -> "SafeNames":
        return self

    def __exit__(self, *_: object) -> None:
        self._given.close()

    def name(
        self, image_id: str, shard: str, source: str, is_file: bool = False
    ) -> tuple[str, str]:
        """Return unused names for an image (`a/b.jpg`) and for its labels (`a/b.txt`).

        `is_file`: the image is a file of its own, in no archive. The same images in the same order
        get the same names. OutputError if a shard holds several images with one id.
        """
        wanted = below(image_id, shard, source)
        if self.rules.own and is_file and _leads_to_a_file(wanted) and self._add(f"={wanted}"):
            self._add(wanted.casefold())
            return wanted, wanted
        *folders, file = [part for part in wanted.split("/") if part] or [""]
        make_safe = safe_part if self.rules.flat else self._safe_folder
        folders = [make_safe(folder) for folder in folders]
        end = _image_suffix(file)
        stem = _cut(_without_unsafe_signs(file).removesuffix(end), PART_BYTES - len(end))
        changed = "/".join([*folders, stem]) + end != wanted or not file
        if self.rules.flat:
            whole = "__".join([*folders, stem])
            folders, stem = [], _cut(whole, PART_BYTES - len(end))
            changed = changed or stem != whole
        stem = "/".join([*folders, stem])
        if len((stem + end).encode()) > NAME_BYTES:
            stem, changed = stem.rpartition("/")[2], True
        picture_end = self._picture_suffix(end)
        digest = hashlib.sha256(f"{shard}\0{image_id}".encode()).hexdigest()
        for mark in (*(() if changed else ("",)), f"-{digest[:8]}", f"-{digest}"):
            name = f"{stem}{mark}"
            if self._reserve_name(name + (self.rules.labels or picture_end)):
                return name + picture_end, name + (self.rules.labels or picture_end)
        raise OutputError(f"{shard} holds several images named {image_id}: which is which?")

    def _safe_folder(self, part: str) -> str:
        """Make a folder of a path safe.

        It gets no name that a file could get, nor one that readers of the format misunderstand.
        """
        part = safe_part(part)
        if self.rules.labels:
            part = re.sub(rf"{re.escape(self.rules.labels)}$", "_", part, flags=re.IGNORECASE)
        return f"{part}_" if part == self.rules.reserved else part

    def _picture_suffix(self, end: str) -> str:
        """Return the suffix of the image; files get one that readers know."""
        if not self.rules.has_files:
            return end
        return COMMON_SUFFIXES.get(end.lower(), end) or NEW_SUFFIX

    def _reserve_name(self, name: str) -> bool:
        self._add(f"={name}")
        return self._add(name.casefold())

    def _add(self, key: str) -> bool:
        """Add a key to the given names: a casefolded name, or "=" and a name as it is spelled."""
        return self._given.execute("INSERT OR IGNORE INTO given VALUES (?)", (key,)).rowcount == 1


def _leads_to_a_file(path: str) -> bool:
    """Whether a relative path stays within its folder, on any system, without control signs."""
    if not {"", ".", ".."}.isdisjoint(path.split("/")):
        return False
    return "\\" not in path and not has_control_character(path)


def _image_suffix(name: str) -> str:
    """Return the suffix that names an image format, as it is spelled; "" if there is none."""
    stem, dot, end = name.rpartition(".")
    return dot + end if stem and f".{end.lower()}" in IMAGE_SUFFIXES else ""
