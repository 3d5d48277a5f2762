"""Access to local paths and object stores through fsspec."""

import errno
import io
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec import AbstractFileSystem
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.access import access_options
from pipeline.storage.errors import InputError as InputError
from pipeline.storage.errors import OutputError as OutputError
from pipeline.storage.errors import StorageUnavailable as StorageUnavailable
from pipeline.storage.file_systems import file_system_of
from pipeline.storage.folders import linked_folder, opened_folder
from pipeline.storage.protocols import EXTRAS, full_url, protocol_of
from pipeline.storage.retries import retry
from pipeline.storage.urls import identity, mask

CONFLICTS = 20  # attempts to create an object while other requests create it too
READ_AHEAD = 4 << 20  # bytes of an archive that one request fetches
# A stalled request fails after these timeouts (in seconds). Only retries.py repeats it.
S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,  # other processes write, so that earlier listings are outdated
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 30,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    },
}


def join(url: str, *parts: str) -> str:
    """The URL of the path `parts` below `url`."""
    return "/".join([url.rstrip("/"), *parts])


def open_location(url: str, what: str) -> tuple[AbstractFileSystem, str]:
    """The file system and the path of a local path or URL.

    `what` names the location in errors ("INPUT"). Endpoints and credentials come from the
    environment: AWS_ENDPOINT_URL, AWS_PROFILE, ... for S3, AZURE_STORAGE_ACCOUNT_NAME, ... for
    adlfs, GOOGLE_APPLICATION_CREDENTIALS, ... for gcsfs.

    Raises InputError for a protocol that protocols.py does not accept, or whose package is not
    installed.
    """
    protocol = protocol_of(url) or "file"
    extra = EXTRAS.get(protocol)
    options = {"use_listings_cache": False} if extra else {}  # as in S3_OPTIONS
    if protocol in ("s3", "s3a"):
        options = S3_OPTIONS
    try:
        fs, path = file_system_of(url, {**options, **access_options(url)})
    except (ValueError, ImportError) as error:
        hint = f" (pip install '.[{extra}]')" if isinstance(error, ImportError) else ""
        reason, shown = mask(str(error), url), mask(full_url(url))
        raise InputError(f"{what} {shown} cannot be opened: {reason}{hint}") from error
    if isinstance(fs, LocalFileSystem):
        path = os.path.normpath(path)  # one location has one name
        path = path[1:] if path.startswith("//") else path  # POSIX lets `//` differ; Linux does not
    elif options is S3_OPTIONS:
        fs.retries = 1  # s3fs repeats requests in addition to botocore
        if fs.session is None:
            from pipeline.storage.s3 import s3_session  # slow to import; only S3 needs it

            fs.session = s3_session(fs.kwargs)
    return fs, path


def open_self_retrying(url: str) -> AbstractFileSystem:
    """The file system of a URL, for a library that reads through it and does not repeat requests.

    On S3 this file system repeats requests itself, with the means of s3fs and botocore. Requests of
    this project are repeated by retries.py instead. It remembers what it listed: a caller lists the
    folders that it reads, anew each time, and no file of them is asked for its size then.
    """
    if protocol_of(url) not in ("s3", "s3a"):
        return open_location(url, "OUTPUT")[0]
    config = {**S3_OPTIONS["config_kwargs"], "retries": {"total_max_attempts": 8}}
    options = {**S3_OPTIONS, "config_kwargs": config, "use_listings_cache": True}
    fs, _ = file_system_of(url, options)
    fs.retries = 8
    return fs


def list_files(fs: AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """The details of every object below `path`, by name and sorted by name.

    The result is empty if `path` does not exist. Raises OSError if a local folder may not be read.
    """
    if isinstance(fs, LocalFileSystem):
        if not fs.exists(path):
            return {}
        # A folder that may not be read is an error. By default fsspec leaves it out.
        found = fs.find(path, detail=True, on_error="raise")
    else:
        found = retry(fs.find, path, detail=True)
        # s3fs lists a folder without objects as the only object in it.
        found = {name: info for name, info in found.items() if info["type"] != "directory"}
    return dict(sorted(found.items()))


def object_info(fs: AbstractFileSystem, path: str) -> dict[str, Any]:
    """The details of an object: its name, type, size and version (see versions.py).

    Planning and reading both get the version from here. A local link has the type, the size and
    the version of its target.
    """
    info: dict[str, Any] = retry(fs.info, path)
    return info


def read_object(fs: AbstractFileSystem, path: str, size: int = -1) -> bytes:
    """The bytes of an object, with one request on S3. If `size` is given, at most `size` bytes."""
    if isinstance(fs, LocalFileSystem):
        _refuse_special_file(path)
        data: bytes = retry(fs.cat_file, path, 0, size if size >= 0 else None)
    elif size >= 0 and "http" in fs.protocol:
        data = retry(fs.read_start, path, size)
    elif size >= 0:
        data = retry(fs.cat_file, path, start=0, end=size) if size else b""
    else:
        # By default s3fs requests the size first, to read large objects with several requests.
        options = {"max_concurrency": 1} if "s3" in fs.protocol else {}
        data = retry(fs.cat_file, path, **options)
    return data


def _refuse_special_file(path: str) -> None:
    """Raise OSError for a pipe, a socket or a device: to read it may never end."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def open_object(fs: AbstractFileSystem, path: str) -> BinaryIO:
    """Open an object for reading, with random access. Failed requests are repeated.

    s3fs raises FileExpired if the object changes while it is open.
    """
    if isinstance(fs, LocalFileSystem):
        _refuse_special_file(path)
        return open(path, "rb")
    if "http" in fs.protocol:  # many servers do not deliver parts of a file
        return local_copy(fs, path)
    return io.BufferedReader(_Ranges(fs, path), READ_AHEAD)


def local_copy(fs: AbstractFileSystem, path: str) -> BinaryIO:
    """Open an object for reading as a local file.

    A remote object is copied to a temporary file without a name, which is gone when it is closed,
    or when the process ends.
    """
    if isinstance(fs, LocalFileSystem):
        return open(path, "rb")
    file = cast(BinaryIO, tempfile.TemporaryFile(prefix="detr-batch-"))  # noqa: SIM115
    copy_to_file(fs, path, file)
    file.seek(0)
    return file


def copy_to_file(fs: AbstractFileSystem, path: str, file: BinaryIO) -> None:
    """Copy a remote object into an empty file."""
    if "http" in fs.protocol:
        retry(fs.copy_to, path, file)
    else:
        with io.BufferedReader(_Ranges(fs, path), READ_AHEAD) as source:
            shutil.copyfileobj(source, file, READ_AHEAD)
    file.flush()


class _Ranges(io.RawIOBase):
    """A raw file that makes one request per read. A buffer around it keeps the requests few."""

    def __init__(self, fs: AbstractFileSystem, path: str):
        self._file = retry(fs.open, path, "rb", cache_type="none")
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: int(self._file.size)}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = retry(self._read, self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, at: int, count: int) -> bytes:
        wanted = max(0, min(count, self._file.size - at))
        self._file.seek(at)
        data: bytes = self._file.read(wanted) if wanted else b""
        if len(data) < wanted:
            raise ConnectionError(f"{len(data)} bytes came where {wanted} were asked for")
        return data


def uri(fs: AbstractFileSystem, path: str) -> str:
    """The full URL of an object; `file:///...` for local files."""
    return str(fs.unstrip_protocol(path))


def canonical_url(url: str) -> str:
    """The one URL of a location, independent of its spelling, without secrets."""
    return identity(uri(*open_location(url, "INPUT")))


def remove_tree(fs: AbstractFileSystem, path: str) -> None:
    """Delete all objects below `path`. In contrast to `fs.rm`, `[` and `*` are not patterns.

    Links in a local folder are deleted, not followed. Raises InputError if the folder, or the one
    that holds it, is a link.
    """
    if isinstance(fs, LocalFileSystem):
        place, name = os.path.split(path)
        if os.path.islink(path):
            raise linked_folder(path)
        if os.path.exists(path):
            with opened_folder(*os.path.split(place)) as folder:
                shutil.rmtree(name, dir_fd=folder)
        return
    files = list_files(fs, path)
    if has_magic(path):
        for name in files:
            retry(fs.rm_file, name)
    elif files:
        retry(fs.rm, list(files))


def create_whole(fs: AbstractFileSystem, path: str, data: bytes) -> bool:
    """Create an object atomically unless it exists. Returns False if it exists.

    After any error it is unknown whether the object was created or still will be. Raises InputError
    for a local file system without hard links, and TimeoutError after CONFLICTS conflicts.
    """
    if isinstance(fs, LocalFileSystem):
        return _link_whole(Path(path), data)
    for _ in range(CONFLICTS):
        try:
            retry(fs.pipe_file, path, data, mode="create")
            return True
        except FileExistsError as error:
            # adlfs raises this for every conflict (409), gcsfs for every failed precondition (412).
            try:
                read_object(fs, path, 1)
            except FileNotFoundError:
                raise OSError(f"{mask(path)} was refused as if it existed: {error}") from error
            return False
        except OSError as error:  # s3fs converts botocore's error to an OSError
            answer = getattr(error.__cause__ or error, "response", {})
            code = answer.get("Error", {}).get("Code")
            if code == "PreconditionFailed":
                return False
            # ConditionalRequestConflict: another request is creating the object at this moment.
            if code != "ConditionalRequestConflict":
                raise
    raise TimeoutError(f"{mask(path)} is being created by others, again and again")


def _link_whole(target: Path, data: bytes) -> bool:
    """Create a local file together with its content. Returns False if the file exists."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _write_temporary(target, data)
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise InputError(
                f"{target} lies on a file system without hard links, by which a run is committed: "
                "use another disk"
            ) from error
        raise
    finally:
        os.unlink(temporary)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True


def _write_temporary(target: Path, data: bytes | Path) -> str:
    """Write `data` to a hidden file beside `target`, flush it to the disk, and return its path."""
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            if isinstance(data, Path):
                with data.open("rb") as source:
                    shutil.copyfileobj(source, file)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def write_whole(fs: AbstractFileSystem, path: str, data: bytes | Path) -> None:
    """Write an object atomically, with one put or by renaming a hidden local file.

    `data` is the content, or the path of a local file that holds it.
    """
    if not isinstance(fs, LocalFileSystem):
        if isinstance(data, Path):
            retry(fs.put_file, str(data), path)
        else:
            retry(fs.pipe_file, path, data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _write_temporary(target, data)
    try:
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
