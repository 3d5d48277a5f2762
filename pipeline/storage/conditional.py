"""Changes of an object that take effect only if the object still is what was read.

On S3 the condition is the ETag (`If-Match`). On a disk a lock of the kernel on a hidden file beside
it keeps the processes of all machines apart. A store or disk that knows neither is read right
before the change. A process that stands still in between can then change a newer object.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage import kernel_locks
from pipeline.storage.errors import StorageUnavailable
from pipeline.storage.files import read_object, write_whole
from pipeline.storage.retries import retry


def replace_if(
    fs: AbstractFileSystem, path: str, condition: Callable[[bytes], bool], data: bytes
) -> bool:
    """Replace an object if its content meets the condition.

    Returns False, and changes nothing, if it does not or if there is no object.
    """
    return _change(fs, path, condition, data)


def remove_if(fs: AbstractFileSystem, path: str, condition: Callable[[bytes], bool]) -> bool:
    """Delete an object if its content meets the condition. Returns as `replace_if`."""
    return _change(fs, path, condition, None)


def _change(
    fs: AbstractFileSystem, path: str, condition: Callable[[bytes], bool], data: bytes | None
) -> bool:
    try:
        if isinstance(fs, LocalFileSystem):
            with _locked(path):
                return _change_unguarded(fs, path, condition, data)
        if "s3" in fs.protocol:
            return _change_on_s3(fs, path, condition, data)
        return _change_unguarded(fs, path, condition, data)
    except FileNotFoundError:
        return False


def _change_unguarded(
    fs: AbstractFileSystem, path: str, condition: Callable[[bytes], bool], data: bytes | None
) -> bool:
    if not condition(read_object(fs, path)):
        return False
    if data is None:
        retry(fs.rm_file, path)
    else:
        write_whole(fs, path, data)
    return True


def _change_on_s3(
    fs: Any, path: str, condition: Callable[[bytes], bool], data: bytes | None
) -> bool:
    # The ETag is asked for first: if another content is read, it is of a later version.
    etag = retry(fs.info, path)["ETag"]
    if not condition(read_object(fs, path)):
        return False
    try:
        if data is None:
            bucket, key, _ = fs.split_path(path)
            retry(fs.call_s3, "delete_object", Bucket=bucket, Key=key, IfMatch=etag)
        else:
            retry(fs.pipe_file, path, data, IfMatch=etag)
    except Exception as error:  # botocore's error, or the OSError that s3fs makes of it
        answer = getattr(error.__cause__ or error, "response", {})
        code = answer.get("Error", {}).get("Code")
        if code == "NotImplemented":  # a store without conditional writes
            return _change_unguarded(fs, path, condition, data)
        if code != "PreconditionFailed":
            raise
        # Either the object has changed, or the answer to an earlier attempt of ours was lost.
        return data is not None and read_object(fs, path) == data
    return True


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Keep other processes from changing a local file through this module.

    A hidden file beside it is locked. It may be opened only by those who may write in the folder: a
    lock on the folder itself could be held by whoever may read it. Raises StorageUnavailable if
    another process stands still while it changes the file.
    """
    lock = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.lock")
    descriptor = _open_locked(lock)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(lock)
        os.close(descriptor)  # which ends the lock


def _open_locked(lock: str) -> int:
    """Open and lock a file, which is made. Who has had its lock before has deleted it."""
    until = time.monotonic() + kernel_locks.LOCK_SECONDS
    while True:
        descriptor = _open(lock)
        if descriptor is None:
            time.sleep(kernel_locks.LOCK_PAUSE)
        elif kernel_locks.wait_for_lock(descriptor) and _is_at(lock, descriptor):
            return descriptor
        else:
            os.close(descriptor)
        if time.monotonic() > until:
            raise StorageUnavailable(
                f"another process stands still while it changes the file of {lock}: wait for it, "
                "or end it, or delete that file if nobody holds it, and run the same command again"
            )


def _open(lock: str) -> int | None:
    """Open or make the file of a lock. None if it is of a user who lets this one not open it."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except PermissionError:
        if not os.path.lexists(lock):
            raise
        return None
    of_folder, own = os.stat(os.path.dirname(lock) or "."), os.fstat(descriptor)
    mode = 0o600 | (of_folder.st_mode & 0o022) * 3  # for those who may write in the folder
    if own.st_uid == os.geteuid() and own.st_mode & 0o777 != mode:
        os.fchmod(descriptor, mode)
    return descriptor


def _is_at(path: str, descriptor: int) -> bool:
    """Whether an open file still is the one at a path."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
