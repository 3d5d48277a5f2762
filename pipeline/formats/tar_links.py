"""Links in tars: what they lead to. Nothing outside of the archive is ever opened.

A tar is read from start to end, and the bytes of its members are not kept. Links are therefore
noted, together with 16 bytes for each member. Where links lead to is found at the end.
"""

import hashlib
import posixpath
import tarfile
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOST_MEMBERS = 1 << 22  # files and folders of an archive that links can lead to: 64 MiB
MOST_LINKS = 1 << 18
MOST_LINK_CHARACTERS = 64 << 20  # of the names and the targets of all links together
LONGEST_PATH = 4096  # characters, as in Linux
MOST_HOPS = 40  # links that one path leads through, as in Linux


class BadLink(Exception):
    """A link leads to no file of the archive; the message says where it leads."""

    def __init__(self, reason: str, is_folder: bool = False) -> None:
        super().__init__(reason)
        self.is_folder = is_folder


@dataclass(frozen=True, slots=True)
class Link:
    """A link of an archive. The target of a hard link is a path from the root of the archive."""

    name: str
    offset: int
    target: str
    is_hard: bool


class Links:
    """The links of an archive, and where its files and folders are."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}  # those that a path can lead through, by path
        self._count = self._characters = 0
        self._files, self._folders = _Places(), _Places()
        self._folder = ""  # the folder of the last file

    def note_file(self, name: str, offset: int) -> None:
        path = _path(name)
        if len(path) > LONGEST_PATH:
            return
        self._files.note(path, offset)
        self._links.pop(path, None)
        folder = posixpath.dirname(path)
        while folder not in ("", "/") and not f"{self._folder}/".startswith(f"{folder}/"):
            self._folders.note(folder, offset)
            folder = posixpath.dirname(folder)
        self._folder = posixpath.dirname(path)

    def note_folder(self, name: str, offset: int) -> None:
        path = _path(name)
        if len(path) <= LONGEST_PATH:
            self._folders.note(path, offset)
            self._links.pop(path, None)

    def note_link(self, entry: tarfile.TarInfo) -> Link:
        """Remember a link. Raises BadLink if there are too many, or if its paths are too long."""
        if max(len(entry.name), len(entry.linkname)) > LONGEST_PATH:
            raise BadLink(f"a path has more than {LONGEST_PATH} characters")
        self._count += 1
        self._characters += len(entry.name) + len(entry.linkname)
        if self._count > MOST_LINKS or self._characters > MOST_LINK_CHARACTERS:
            raise BadLink(
                f"the archive has more links than are followed ({MOST_LINKS} with "
                f"{MOST_LINK_CHARACTERS} characters): write it with files in their place (tar "
                "--dereference --hard-dereference)"
            )
        path = _path(entry.name)
        link = Link(entry.name, entry.offset, entry.linkname, entry.islnk())
        if link.is_hard:
            through = self._links.get(_path(link.target))
            if through is not None:  # a hard link to a link is what that link is
                link = Link(link.name, link.offset, through.target, through.is_hard)
        if not link.is_hard or _path(link.target) != path:
            self._links[path] = link
        return link

    def follow(self, links: Iterable[Link]) -> list[tuple[Link, int | BadLink]]:
        """Where the links lead: to the entry at an offset, or nowhere.

        A hard link leads to the last file of that name before it, as when tar unpacks it, or to the
        first behind it. A symbolic link leads to the last file of that name.
        """
        files, folders = self._files.ordered(), self._folders.ordered()
        found: list[tuple[Link, int | BadLink]] = []
        for link in links:
            try:
                found.append((link, self._offset_of(link, files, folders)))
            except BadLink as error:
                found.append((link, error))
        return found

    def _offset_of(self, link: Link, files: "_OrderedPlaces", folders: "_OrderedPlaces") -> int:
        path = self._resolve(link)
        offsets = files.find(path)
        if len(offsets):
            before = int(np.searchsorted(offsets, link.offset)) if link.is_hard else len(offsets)
            return int(offsets[max(before - 1, 0)])
        if path in ("", "/") or len(folders.find(path)):
            raise BadLink(f"it leads to a folder ({_short(link.target)})", is_folder=True)
        if path.startswith(("/", "../")) or path == "..":
            raise BadLink(f"it leads out of the archive ({_short(link.target)})")
        if self._files.is_full:
            raise BadLink(
                f"it leads to no file among the first {MOST_MEMBERS} members "
                f"({_short(link.target)}): split the archive"
            )
        raise BadLink(f"it leads to no file of the archive ({_short(link.target)})")

    def _resolve(self, link: Link) -> str:
        """The path in the archive that a link leads to, through other links and linked folders."""
        folder = "" if link.is_hard else posixpath.dirname(_path(link.name))
        left = posixpath.join(folder, link.target).split("/")[::-1]
        path = "/" if left[-1] == "" else ""
        hops = 0
        while left:
            part = left.pop()
            if part in ("", "."):
                continue
            if part == "..":
                path = _parent(path)
                continue
            step = posixpath.join(path, part)
            through = self._links.get(step)
            if through is None:
                path = step
                continue
            hops += 1
            if hops > MOST_HOPS or len(left) > LONGEST_PATH:
                raise BadLink(f"it leads in circles ({_short(link.target)})")
            if through.is_hard or through.target.startswith("/"):
                path = "/" if through.target.startswith("/") else ""
            left.extend(through.target.split("/")[::-1])
        return path


class _Places:
    """The offsets of entries by their paths: 16 bytes for each entry, up to MOST_MEMBERS."""

    def __init__(self) -> None:
        self._digests, self._offsets = array("Q"), array("q")
        self.is_full = False

    def note(self, path: str, offset: int) -> None:
        if len(self._offsets) >= MOST_MEMBERS:
            self.is_full = True
            return
        self._digests.append(_digest(path))
        self._offsets.append(offset)

    def ordered(self) -> "_OrderedPlaces":
        digests = np.frombuffer(self._digests, np.uint64)
        order = np.argsort(digests, kind="stable")
        return _OrderedPlaces(digests[order], np.frombuffer(self._offsets, np.int64)[order])


@dataclass(frozen=True)
class _OrderedPlaces:
    digests: npt.NDArray[np.uint64]
    offsets: npt.NDArray[np.int64]

    def find(self, path: str) -> npt.NDArray[np.int64]:
        """The offsets of the entries with this path, from the first on."""
        digest = np.uint64(_digest(path))
        start = int(np.searchsorted(self.digests, digest, "left"))
        stop = int(np.searchsorted(self.digests, digest, "right"))
        return self.offsets[start:stop]


def _digest(path: str) -> int:
    encoded = path.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def _path(name: str) -> str:
    """A name of an entry as a path in the archive: `./a//b.jpg` is `a/b.jpg`."""
    path = posixpath.normpath(name)
    if path.startswith("/"):
        return f"/{path.lstrip('/')}"
    return "" if path == "." else path


def _parent(path: str) -> str:
    """The folder of a path. Above the root of an archive it is `..`, and above that `../..`."""
    if path == "/" or posixpath.basename(path) not in ("", ".."):
        return posixpath.dirname(path)
    return posixpath.join(path, "..")


def _short(target: str) -> str:
    return target if len(target) <= 200 else f"{target[:200]}..."
