"""Batches as the store holds them: documents that are created once, each at its step.

    created    the batch as its client made it
    cancel     the client wants its end
    validated  its input is read: what there is to label
    labelled   the run of `label` has ended
    ended      the batch as it stays: completed, failed, expired or cancelled

`progress` alone is written again and again, and may be lost. The name of an open batch also lies in
a folder of its own, so that a server that starts finds it.
"""

import time
from itertools import islice
from typing import Any, Literal

from pydantic import BaseModel, Field

from jobs.serve.batches.store import Order, Store, folder_of_scope, is_id, page_of
from jobs.serve.protocol.callers import Caller
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import shown

PREFIX = "batch_"
OPEN = "batches/open"
WINDOW_SECONDS = 24 * 3600  # OpenAI's only completion window
MINUTES_OF_DAY = 24 * 60
MOST_OPEN = 100  # batches of a scope that wait or run
MOST_KEPT = 2000  # batches of a scope; the oldest that have ended go
Endpoint = Literal["/v1/detections", "/v1/chat/completions"]
Ending = Literal["failed", "completed", "expired", "cancelled"]


class BatchError(BaseModel):
    """Why a batch failed."""

    code: str
    message: str
    param: str | None = None
    line: int | None = Field(default=None, description="Of the input file, from 1.")


class BatchErrors(BaseModel):
    """The first reasons for which a batch failed."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """Counts of images. A line that asks for nothing valid counts as one failed image."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class TokenDetails(BaseModel):
    """There are no tokens: clients expect the fields."""

    cached_tokens: int = 0
    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    """What a batch used. Tokens are 0."""

    images: int = Field(description="Images that were detected in.")
    cost_usd: float | None = None
    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int = 0
    output_tokens_details: TokenDetails = TokenDetails()
    total_tokens: int = 0


class Batch(BaseModel):
    """A batch. Times are Unix times in seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    model: str | None = None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Literal["validating", "in_progress", "finalizing", "cancelling"] | Ending
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage | None = None
    metadata: dict[str, str] | None = None


class Validated(BaseModel):
    """What the input of a batch asks for."""

    at: int
    images: int | None  # of all lines; None for a lake, which nobody has counted
    bad: int = 0  # lines that ask for nothing valid, and images that cannot be asked for
    listed: int = 0  # distinct addresses in the list that `label` reads
    threshold: float  # the least score that a line wants
    runs_before: str | None = None  # the newest run that a lake's OUTPUT had before


class Allowance(BaseModel):
    """The images that the batches of a key may have in a day."""

    key: str  # its id
    images: int


def allowance_of(caller: Caller) -> Allowance | None:
    """What the minutes of a day allow a key; None without a limit."""
    limit = caller.images_per_minute
    return None if limit is None else Allowance(key=caller.key, images=limit * MINUTES_OF_DAY)


class Record:
    """The documents of one batch."""

    def __init__(self, store: Store, folder_of_its_scope: str, batch_id: str):
        self.store, self.id = store, batch_id
        self.scope_folder = folder_of_its_scope
        self.folder = f"batches/{folder_of_its_scope}/{batch_id}"

    def create(self, batch: Batch, scope: str, allowance: Allowance | None = None) -> None:
        """Create the batch, which is open from now on."""
        self.store.write(f"{OPEN}/{self.scope_folder}.{self.id}", b"")
        document: dict[str, Any] = {"scope": scope, "batch": batch.model_dump()}
        if allowance is not None:
            document["allowance"] = allowance.model_dump()
        self.store.create(self._name("created"), document)

    def created(self) -> tuple[Batch, str] | None:
        """The batch as its client made it, and its scope; None if there is none."""
        found = self.store.read(self._name("created"))
        return None if found is None else (Batch.model_validate(found["batch"]), found["scope"])

    def allowance(self) -> Allowance | None:
        """What the key that created it may have; None without a limit."""
        found = (self.store.read(self._name("created")) or {}).get("allowance")
        return None if found is None else Allowance.model_validate(found)

    def validated(self) -> Validated | None:
        """What its input asks for; None before it is read."""
        found = self.store.read(self._name("validated"))
        return None if found is None else Validated.model_validate(found)

    def mark(self, step: Literal["cancel", "labelled"]) -> None:
        """Say that the batch has come to a step now."""
        self.store.create(self._name(step), {"at": int(time.time())})

    def marked(self, step: Literal["cancel", "labelled"]) -> int | None:
        """When the batch came to a step."""
        found = self.store.read(self._name(step))
        return None if found is None else int(found["at"])

    def write_validated(self, validated: Validated) -> None:
        """Say what the input asks for."""
        self.store.create(self._name("validated"), validated.model_dump())

    def write_progress(self, counts: RequestCounts) -> None:
        """Say how far the run is."""
        self.store.write(self._name("progress"), counts.model_dump_json().encode())

    def ended(self) -> Batch | None:
        """The batch as it stays; None while it is open."""
        found = self.store.read(self._name("ended"))
        return None if found is None else Batch.model_validate(found)

    def end(self, batch: Batch) -> None:
        """End the batch, unless it has ended; nothing changes it any more."""
        self.store.create(self._name("ended"), batch.model_dump())

    def close(self) -> None:
        """Take a batch that has ended off the open ones."""
        self.store.remove(f"{OPEN}/{self.scope_folder}.{self.id}")

    def state(self) -> Batch | None:
        """The batch as it is now; None if there is none."""
        if ended := self.ended():
            return ended
        created = self.created()
        if created is None:
            return None
        batch = created[0]
        validated, cancelling_at = self.validated(), self.marked("cancel")
        if validated is not None:
            counts = self._progress(validated)
            batch = batch.model_copy(
                update={
                    "status": "in_progress",
                    "in_progress_at": validated.at,
                    "request_counts": counts,
                }
            )
            if labelled_at := self.marked("labelled"):
                batch = batch.model_copy(
                    update={"status": "finalizing", "finalizing_at": labelled_at}
                )
        if cancelling_at is not None:
            batch = batch.model_copy(
                update={"status": "cancelling", "cancelling_at": cancelling_at}
            )
        return batch

    def _progress(self, validated: Validated) -> RequestCounts:
        found = self.store.read(self._name("progress"))
        if found is not None:
            return RequestCounts.model_validate(found)
        return RequestCounts(total=(validated.images or 0) + validated.bad, failed=validated.bad)

    def _name(self, document: str) -> str:
        return f"{self.folder}/{document}.json"


class Records:
    """The batches of one scope."""

    def __init__(self, store: Store, scope: str):
        self._store, self._scope, self._folder = store, scope, folder_of_scope(scope)

    def create(self, batch: Batch, allowance: Allowance | None = None) -> None:
        """Create a batch. Raises ApiError if too many wait."""
        waiting = [name for name in self._store.names(OPEN) if name.startswith(self._folder)]
        if len(waiting) >= MOST_OPEN:
            text = f"{len(waiting)} batches wait: create another one when one of them has ended."
            raise ApiError(429, text, "too_many_batches", headers={"retry-after": "60"})
        self._forget_oldest()
        self.record(batch.id).create(batch, self._scope, allowance)

    def _forget_oldest(self) -> None:
        """Remove the documents of the oldest batches, so that another has room among MOST_KEPT."""
        ids = self._ids()
        ended = (record for record in map(self.record, ids) if record.ended() is not None)
        for record in islice(ended, max(0, len(ids) - MOST_KEPT + 1)):
            self._store.remove_folder(record.folder)

    def _ids(self) -> list[str]:
        names = self._store.names(f"batches/{self._folder}")
        return [name for name in names if is_id(name, PREFIX)]

    def record(self, batch_id: str) -> Record:
        """The documents of a batch, if it exists."""
        return Record(self._store, self._folder, batch_id)

    def get(self, batch_id: str) -> Batch:
        """A batch as it is now. Raises ApiError if there is none."""
        batch = self.record(batch_id).state() if is_id(batch_id, PREFIX) else None
        if batch is None:
            raise ApiError(404, f"There is no batch `{shown(batch_id)}`.", "batch_not_found")
        return batch

    def list(self, limit: int, after: str | None, order: Order) -> tuple[list[Batch], bool]:
        """A page of batches, and whether there are more."""
        return page_of(self._ids(), lambda name: self.record(name).state(), limit, after, order)


def open_records(store: Store) -> list[Record]:
    """The open batches of all scopes, oldest first."""
    names = (name.partition(".") for name in store.names(OPEN))
    found = [(batch_id, folder) for folder, _, batch_id in names if is_id(batch_id, PREFIX)]
    return [Record(store, folder, batch_id) for batch_id, folder in sorted(found)]


def ended_as(batch: Batch, status: Ending, **changes: Any) -> Batch:
    """A batch that ends now."""
    times = {f"{status}_at": int(time.time())}
    return batch.model_copy(update={"status": status, **times, **changes})
