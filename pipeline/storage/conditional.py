"""Changes of an object that take effect only if the object still is what was read.

On S3 the condition is the ETag (`If-Match`). On a disk a lock of the kernel on the folder keeps the
processes of all machines apart. A store or disk that knows neither is read right before the
change. A process that stands still in between can then change a newer object.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.errors import StorageUnavailable
from pipeline.storage.files import read_object, write_whole
from pipeline.storage.retries import retry

FOLDER_SECONDS = 10.0  # the longest wait for another process that changes a file of a folder
FOLDER_PAUSE = 0.02  # between two attempts to lock a folder
# What a file system says that has no such locks, or none on folders (NFS).
_NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


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
            with _locked_folder(os.path.dirname(path)):
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
def _locked_folder(folder: str) -> Iterator[None]:
    """Keep other processes from changing files of a folder through this module.

    Raises StorageUnavailable if another process stands still while it does.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        until = time.monotonic() + FOLDER_SECONDS
        while not _lock(descriptor):
            if time.monotonic() > until:
                raise StorageUnavailable(
                    f"another process stands still while it changes a file of {folder}: wait for "
                    "it, or end it, and run the same command again"
                )
            time.sleep(FOLDER_PAUSE)
        yield
    finally:
        os.close(descriptor)  # which ends the lock


def _lock(descriptor: int) -> bool:
    """Try to lock a folder. True too if its file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
