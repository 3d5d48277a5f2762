"""`/v1/batches`: many requests at once, which one run of `label` answers."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from jobs.serve.batches.file_routes import TheirFiles, store_of
from jobs.serve.batches.lakes import check_lake, is_lake, refuse_limited
from jobs.serve.batches.records import (
    PREFIX,
    WINDOW_SECONDS,
    Batch,
    Endpoint,
    Records,
    allowance_of,
)
from jobs.serve.batches.room import Room
from jobs.serve.batches.store import check_cursor, new_id
from jobs.serve.protocol.callers import Caller, caller_of
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import parse_body

router = APIRouter(tags=["batches"])
MOST_KEYS = 16  # of metadata
Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Value = Annotated[str, StringConstraints(max_length=512)]


class BatchRequest(BaseModel):
    """The batch to create."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(
        description="Of an uploaded file. With `input` and `output` in `metadata` it is not read."
    )
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Key, Value], Field(max_length=MOST_KEYS)] | None = Field(
        default=None,
        description="`input` and `output`, both URLs in buckets, label a whole lake instead of a "
        "file.",
    )


class BatchList(BaseModel):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": BatchRequest.model_json_schema()}},
    }
}


def records_of(request: Request, caller: Annotated[Caller, Depends(caller_of)]) -> Records:
    """The batches of the caller, as a dependency of routes."""
    return Records(store_of(request), caller.scope)


TheirBatches = Annotated[Records, Depends(records_of)]


async def body_of(request: Request) -> bytes:
    """The body, for routes that run in threads."""
    return await request.body()


@router.post("/v1/batches", openapi_extra=BODY)
def create_batch(
    request: Request,
    body: Annotated[bytes, Depends(body_of)],
    batches: TheirBatches,
    files: TheirFiles,
    caller: Annotated[Caller, Depends(caller_of)],
) -> Batch:
    """Create a batch. It is validated and run in the background."""
    asked = parse_body(BatchRequest, body)
    allowance = allowance_of(caller)
    if is_lake(asked.metadata):
        refuse_limited(allowance)
        check_lake(asked.metadata or {}, asked.endpoint, request.app.state.service.settings)
    elif files.get(asked.input_file_id, "input_file_id").purpose != "batch":
        text = f"The file `{asked.input_file_id}` was not uploaded with the purpose `batch`."
        raise ApiError(400, text, "invalid_purpose", "input_file_id")
    now = int(time.time())
    batch = Batch(
        id=new_id(PREFIX),
        endpoint=asked.endpoint,
        model=request.app.state.service.engine.model,
        input_file_id=asked.input_file_id,
        status="validating",
        created_at=now,
        expires_at=now + WINDOW_SECONDS,
        metadata=asked.metadata,
    )
    room: Room = request.app.state.room
    with room.taken(files, 0):  # its answers are files
        batches.create(batch, allowance)
    return batch


@router.get("/v1/batches")
def list_batches(
    batches: TheirBatches,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
) -> BatchList:
    """List batches, newest first."""
    check_cursor(after, PREFIX)
    found, has_more = batches.list(limit, after, "desc")
    first, last = (found[0].id, found[-1].id) if found else (None, None)
    return BatchList(data=found, first_id=first, last_id=last, has_more=has_more)


@router.get("/v1/batches/{batch_id}")
def retrieve_batch(batch_id: str, batches: TheirBatches) -> Batch:
    """A batch as it is now."""
    return batches.get(batch_id)


@router.post("/v1/batches/{batch_id}/cancel")
def cancel_batch(batch_id: str, batches: TheirBatches) -> Batch:
    """End a batch. What it has labelled already may still be answered."""
    batch = batches.get(batch_id)
    if batch.status in ("completed", "failed", "expired", "finalizing"):
        text = f"The batch `{batch_id}` is {batch.status}, and cannot be cancelled any more."
        raise ApiError(409, text, "batch_not_cancellable")
    if batch.status in ("validating", "in_progress"):
        batches.record(batch_id).mark("cancel")
    return batches.get(batch_id)
