"""`/v1/files`: the inputs of batches, and what they answer."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile

from jobs.serve.batches.files import MOST_BYTES, PREFIX, File, Files, plain_name
from jobs.serve.batches.room import Room
from jobs.serve.batches.store import Order, Store, check_cursor
from jobs.serve.http.forms import FORM, is_form, read_form
from jobs.serve.protocol.callers import Caller, caller_of
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import shown

router = APIRouter(tags=["files"])
FORM_SECONDS = 600.0  # in which an upload must have come
FIELDS = 16  # of a form, at most
IN_MEMORY = 64 << 10  # bytes of a file that still comes: uploads are not counted


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                    },
                    "required": ["file", "purpose"],
                }
            }
        },
    }
}


def store_of(request: Request) -> Store:
    """The store of the app."""
    found: Store = request.app.state.store
    return found


def files_of(request: Request, caller: Annotated[Caller, Depends(caller_of)]) -> Files:
    """The files of the caller, as a dependency of routes."""
    return Files(store_of(request), caller.scope)


TheirFiles = Annotated[Files, Depends(files_of)]


@router.post("/v1/files", openapi_extra=BODY)
async def upload_file(request: Request, files: TheirFiles) -> File:
    """Upload the input of a batch: one JSON request on each line."""
    if not is_form(request):
        raise _no_file()
    try:
        async with asyncio.timeout(FORM_SECONDS):
            form = await read_form(request, 1, FIELDS, IN_MEMORY)
    except TimeoutError as error:
        text = f"The file did not come within {FORM_SECONDS:.0f} s."
        raise ApiError(408, text, "request_timeout", headers={"connection": "close"}) from error
    try:
        room: Room = request.app.state.room
        return await asyncio.to_thread(_save, files, room, _uploaded(form))
    finally:
        await form.close()


def _no_file() -> ApiError:
    text = "The parameter `file` must be a file, as curl sends it by -F file=@requests.jsonl."
    return ApiError(400, text, "invalid_value", "file")


def _uploaded(form: FormData) -> UploadFile:
    """The file of a form. Raises ApiError for a form that is not as it should be."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise _no_file()
    if form.get("purpose") != "batch":
        text = "The parameter `purpose` must be `batch`: this server has no other use for files."
        raise ApiError(400, text, "invalid_value", "purpose")
    if unknown := sorted(set(form) - {"file", "purpose"}):
        name = shown(unknown[0])
        text = f"The parameter `{name}` is unknown or not offered: leave it out."
        raise ApiError(400, text, "unknown_parameter", name)
    if not file.size:
        raise ApiError(400, "The file is empty.", "empty_file", "file")
    if file.size > MOST_BYTES:
        text = f"The file has {file.size} bytes, and {MOST_BYTES} are allowed: make several files."
        raise ApiError(413, text, "file_too_large", "file")
    return file


def _save(files: Files, room: Room, file: UploadFile) -> File:
    with (
        room.taken(files, file.size or 0),
        tempfile.NamedTemporaryFile(prefix="detr-batch-") as copy,
    ):
        shutil.copyfileobj(file.file, copy)
        copy.flush()
        return files.save(Path(copy.name), plain_name(file.filename), "batch")


@router.get("/v1/files")
def list_files(
    files: TheirFiles,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: str | None = None,
    order: Order = "desc",
    purpose: str | None = None,
) -> FileList:
    """List files, newest first."""
    check_cursor(after, PREFIX)
    found, has_more = files.list(limit, after, order, purpose)
    first, last = (found[0].id, found[-1].id) if found else (None, None)
    return FileList(data=found, first_id=first, last_id=last, has_more=has_more)


@router.get("/v1/files/{file_id}")
def retrieve_file(file_id: str, files: TheirFiles) -> File:
    """A file, without its content."""
    return files.get(file_id)


@router.get("/v1/files/{file_id}/content", response_class=StreamingResponse)
def retrieve_file_content(file_id: str, files: TheirFiles) -> StreamingResponse:
    """The content of a file."""
    file = files.get(file_id)
    headers = {"content-length": str(file.bytes)}
    return StreamingResponse(files.pieces(file_id), 200, headers, "application/octet-stream")


@router.delete("/v1/files/{file_id}")
def delete_file(file_id: str, files: TheirFiles) -> DeletedFile:
    """Delete a file. Batches that have read it go on."""
    files.get(file_id)
    files.delete(file_id)
    return DeletedFile(id=file_id)
