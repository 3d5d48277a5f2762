"""The objects of an OUTPUT, addressed by their names relative to OUTPUT."""

import os
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from fsspec.implementations.local import LocalFileSystem

from jobs.output import paths
from jobs.output.documents import read_document_bytes
from pipeline.storage.files import (
    InputError,
    create_whole,
    list_files,
    open_location,
    write_whole,
)
from pipeline.storage.folders import find_linked_folder, linked_folder, opened_folder
from pipeline.storage.protocols import protocol_of
from pipeline.storage.retries import retry
from pipeline.storage.urls import mask

REMOVED_AT_ONCE = 16  # objects deleted at once, because latency limits them


class Store(Protocol):
    """The operations that the log and its writers need."""

    def read(self, name: str) -> bytes:
        """Read an object. Raises FileNotFoundError if there is none."""

    def create(self, name: str, data: bytes) -> bool:
        """Create a whole object if its name is free. Returns False if the name is taken.

        Raises InputError if the store can create nothing so. Any other error leaves open whether
        the object was created, or will be.
        """

    def write(self, name: str, data: bytes) -> None:
        """Create or replace an object."""

    def names(self, folder: str) -> list[str]:
        """All names below a folder, sorted. Empty if the folder does not exist."""

    def remove(self, names: Iterable[str]) -> None:
        """Delete objects. An object that does not exist is no error."""


class OutputStore:
    """An OUTPUT on a disk or an object store."""

    def __init__(self, output: str):
        self.output = output
        self.fs, self.path = open_location(output, "OUTPUT")
        self.on_disk = isinstance(self.fs, LocalFileSystem)

    def _full(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        return read_document_bytes(self.fs, self._full(name))

    def create(self, name: str, data: bytes) -> bool:
        return create_whole(self.fs, self._full(name), data)

    def write(self, name: str, data: bytes) -> None:
        write_whole(self.fs, self._full(name), data)

    def names(self, folder: str) -> list[str]:
        start = len(self.path.rstrip("/")) + 1
        self.fs.invalidate_cache()
        return [name[start:] for name in list_files(self.fs, self._full(folder))]

    def remove(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(REMOVED_AT_ONCE) as pool:
            list(pool.map(self._remove, names))

    def _remove(self, name: str) -> None:
        path = self._full(name)
        with suppress(FileNotFoundError):
            if not self.on_disk:
                retry(self.fs.rm_file, path)
                return
            *folders, file = name.split("/")
            with opened_folder(self.path, *folders) as folder:
                os.unlink(file, dir_fd=folder)
            with suppress(OSError):  # the folder has other files
                Path(path).parent.rmdir()

    def refuse_links(self) -> None:
        """Raise InputError if a folder below OUTPUT is a symbolic link.

        A command that writes OUTPUT would also write and delete files where the link leads.
        """
        if not self.on_disk:
            return
        for folder in (paths.RUNS, paths.STAGING, *paths.TABLES):
            link = find_linked_folder(self._full(folder))
            if link is not None:
                raise linked_folder(link)

    def refuse_read_only(self) -> None:
        """Raise InputError for a store that is for reading: the web, and the Hugging Face hub.

        The hub's client (2.x) looks whether a file exists and then writes it.
        """
        if protocol_of(self.output) in ("http", "https", "hf"):
            raise InputError(
                f"OUTPUT {mask(self.output)} can only be read: labels are written to a disk, S3, "
                "GCS or Azure"
            )

    def refuse_without_atomic_create(self) -> None:
        """Raise InputError if two writers could create the same name. A probe object tells."""
        name = f"{paths.LOG}/probe-{uuid.uuid4().hex}"
        try:
            atomic = self.create(name, b"1") and not self.create(name, b"2")
            atomic = atomic and self.read(name) == b"1"
        except NotImplementedError:
            atomic = False
        self.remove([name])
        if not atomic:
            raise InputError(
                f"{mask(self.output)} lies on a store that cannot create an object only where "
                "there is none, so two runs could lose each other's labels: use another store, or "
                "pass --single-writer if nothing else writes this OUTPUT while a run does"
            )
