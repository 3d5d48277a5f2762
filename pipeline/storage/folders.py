"""Local folders in which files are deleted: a symbolic link must not lead a deletion elsewhere."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from pipeline.storage.errors import InputError

LOOKED_AT = 10_000  # most names of a folder among which a similar one is looked for


@contextmanager
def opened_folder(root: str, *names: str) -> Iterator[int]:
    """Open a folder below `root`, for functions that take a `dir_fd`.

    Nobody can exchange the folder while it is open. `root` may be a symbolic link, no folder below
    it may be one. Raises InputError, which names the link, and FileNotFoundError.
    """
    path = root
    with ExitStack() as stack:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, descriptor)
        for name in filter(None, names):
            path = os.path.join(path, name)
            descriptor = _open_real_folder(name, descriptor, path)
            stack.callback(os.close, descriptor)
        yield descriptor


def _open_real_folder(name: str, parent: int, path: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and os.path.islink(path):
            raise linked_folder(path) from error
        raise


def linked_folder(path: str) -> InputError:
    return InputError(
        f"{path} is a symbolic link: files would be written and deleted where it leads. Move the "
        "folder itself to this place, or give the command a path whose last folder is the link"
    )


def find_linked_folder(folder: str) -> str | None:
    """The first symbolic link to a folder at or below `folder`. None if there is none."""
    if os.path.islink(folder):
        return folder
    for place, names, _ in os.walk(folder):
        for name in names:
            if os.path.islink(os.path.join(place, name)):
                return os.path.join(place, name)
    return None


def make_private_folder(path: Path) -> None:
    """Create a folder that only this user can write to. An existing one must be such a folder.

    Raises InputError otherwise: others could put links into it.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or shared:
        raise InputError(
            f"{path} must be a folder that only this user can write to: delete what is there, or "
            "set TMPDIR to another folder"
        )


def nearest_name(path: str) -> str | None:
    """The path that exists and resembles `path`, which does not. None if there is none."""
    folder, name = os.path.split(path)
    while folder != "/" and not os.path.lexists(folder):
        folder, name = os.path.split(folder)
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, LOOKED_AT)]
    except OSError:
        return None
    similar = get_close_matches(name, names, n=1, cutoff=0.75)
    rest = os.path.relpath(path, os.path.join(folder, name))
    found = os.path.normpath(os.path.join(folder, similar[0], rest)) if similar else None
    return found if found is not None and os.path.exists(found) else None
