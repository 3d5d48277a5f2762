"""The hidden files and folders in which commands write for users, until they are whole.

A killed command leaves its own behind. The next one that writes to the same place deletes it: a
lock, which ends with its process, tells whether somebody still writes there. Locks are of this
machine. Where a file system has none, or another machine writes, leftovers stay.
"""

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.storage.kernel_locks import wait_for_lock


@contextmanager
def hidden_place(place: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a new hidden name beside `place`, at which `make` has made a file or a folder.

    It can be renamed to `place`. What is left there when the block ends is deleted.
    """
    with _locked(place.parent):  # so that nobody takes what is just made for a leftover
        _remove_leftovers(place)
        made = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.unfinished")
        make(made)
        held = os.open(made, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield made
    finally:
        os.close(held)
        _remove(made)


def put_file_in_place(made: Path, place: Path, overwrite: bool) -> None:
    """Let the file `made` appear at `place`, as a whole.

    FileExistsError if something has appeared there meanwhile and must not be replaced.
    """
    if not overwrite:
        try:
            os.link(made, place)  # in contrast to a rename it fails where something is
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if os.path.lexists(place):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place)) from None
    os.replace(made, place)


@contextmanager
def named_in_errors(place: Path) -> Iterator[None]:
    """Name `place` in errors of writing it, which name a hidden file or none."""
    try:
        yield
    except OSError as error:
        error.filename = str(place.absolute())
        raise


def remove_leftovers(place: Path) -> None:
    """Delete what killed commands that wrote to `place` left beside it, as far as this user may."""
    with suppress(OSError), _locked(place.parent):
        _remove_leftovers(place)


def _remove_leftovers(place: Path) -> None:
    hidden = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}\.unfinished")
    for name in os.listdir(place.parent):
        if hidden.fullmatch(name) and not _is_held(place.with_name(name)):
            with suppress(OSError):  # of somebody else
                _remove(place.with_name(name))


def _is_held(made: Path) -> bool:
    """Whether a process may still write at `made`."""
    try:
        with _opened(made) as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder, as far as that is possible.

    Commands hold its lock for milliseconds. Whoever may read the folder may hold it for ever.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # a folder that may be written, and not read
            wait_for_lock(stack.enter_context(_opened(folder)))
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield opened
    finally:
        os.close(opened)


def _remove(made: Path) -> None:
    if made.is_dir() and not made.is_symlink():
        shutil.rmtree(made)
    else:
        made.unlink(missing_ok=True)
