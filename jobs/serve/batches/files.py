"""Files of clients, and those that batches make for them."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, Field

from jobs.serve.batches.store import Order, Store, folder_of_scope, is_id, new_id, page_of
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import shown
from pipeline.storage.errors import StorageUnavailable

PREFIX = "file-"
MOST_BYTES = 200 << 20  # of an uploaded file, as OpenAI allows for batches
LONGEST_NAME = 255  # characters
PIECE = 1 << 20  # bytes of a file that are sent at once
Purpose = Literal["batch", "batch_output"]


class File(BaseModel):
    """A file, without its content."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix time in seconds.")
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    expires_at: None = None
    status_details: None = None


class Files:
    """The files of one scope."""

    def __init__(self, store: Store, scope: str):
        self.scope = scope
        self._store, self._folder = store, f"files/{folder_of_scope(scope)}"

    def save(self, content: Path, filename: str, purpose: Purpose, file_id: str = "") -> File:
        """Save a local file. The id is a new one, or the given one, whose file is replaced."""
        file = File(
            id=file_id or new_id(PREFIX),
            bytes=content.stat().st_size,
            created_at=int(time.time()),
            filename=filename,
            purpose=purpose,
        )
        document = file.model_dump_json().encode()
        name = f"{self._folder}/{file.id}/content"
        self._store.write(name, content)
        try:  # from now on the file exists
            self._store.write(f"{self._folder}/{file.id}/file.json", document)
        except StorageUnavailable:
            if not file_id:  # nobody will know its name
                with suppress(StorageUnavailable):
                    self._store.remove(name)
            raise
        return file

    def find(self, file_id: str) -> File | None:
        """A file; None if there is none with this id."""
        if not is_id(file_id, PREFIX):
            return None
        document = self._store.read(f"{self._folder}/{file_id}/file.json")
        return None if document is None else File.model_validate(document)

    def get(self, file_id: str, param: str | None = None) -> File:
        """A file. Raises ApiError if there is none; `param` names the id in the request."""
        file = self.find(file_id)
        if file is None:
            raise ApiError(404, f"There is no file `{shown(file_id)}`.", "file_not_found", param)
        return file

    def list(
        self, limit: int, after: str | None, order: Order, purpose: str | None
    ) -> tuple[list[File], bool]:
        """A page of files, and whether there are more."""

        def read(name: str) -> File | None:
            file = self.find(name)
            return file if file is not None and purpose in (None, file.purpose) else None

        return page_of(self._store.names(self._folder), read, limit, after, order)

    def sizes(self) -> dict[str, dict[str, int]]:
        """The bytes of the objects of each file, by its id and their names."""
        found: dict[str, dict[str, int]] = {}
        for name, size in self._store.sizes(self._folder).items():
            file_id, _, part = name.partition("/")
            if is_id(file_id, PREFIX):
                found.setdefault(file_id, {})[part] = size
        return found

    def open(self, file_id: str) -> BinaryIO:
        """Open the content. Raises FileNotFoundError."""
        return self._store.open(f"{self._folder}/{file_id}/content")

    def pieces(self, file_id: str) -> Iterator[bytes]:
        """The content, piece by piece."""
        with closing(self.open(file_id)) as file:
            while piece := file.read(PIECE):
                yield piece

    def delete(self, file_id: str) -> None:
        """Delete a file."""
        for name in ("file.json", "content"):
            self._store.remove(f"{self._folder}/{file_id}/{name}")


def plain_name(filename: str | None) -> str:
    """The name of an uploaded file, without folders, and not too long."""
    return os.path.basename((filename or "").replace("\\", "/"))[-LONGEST_NAME:] or "upload.jsonl"
