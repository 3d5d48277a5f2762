"""The images that the batches of a key had in the last 24 hours, counted in the store.

The count stands in what batches say once their input is read, so that all servers over one store,
and those that were started again, count the same.
"""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

from jobs.serve.batches.records import (
    PREFIX,
    WINDOW_SECONDS,
    Allowance,
    BatchError,
    Record,
    Validated,
)
from jobs.serve.batches.store import READ_AT_ONCE, is_id, time_of_id

DAY_SECONDS = 24 * 3600


def refusal_of(allowance: Allowance, record: Record, images: int) -> BatchError | None:
    """Why the batch of a record may not have so many images now; None if it may."""
    now = time.time()
    used = sorted(_used_by(allowance.key, record, now))
    left = max(0, allowance.images - sum(count for _, count in used))
    if images <= left:
        return None
    text = (
        f"The batch has {images} images. The batches of its key may have {allowance.images} in 24 "
        f"hours, and {left} are left"
    )
    wait, advice = "", "make smaller batches"
    if images <= allowance.images:
        free_at = _free_at(used, images - left)
        wait = f" for {math.ceil((free_at - now) / 60)} minutes"
        advice = "create it again then"
    return BatchError(code="rate_limit_exceeded", message=f"{text}{wait}: {advice}.")


def _used_by(key: str, record: Record, now: float) -> list[tuple[float, int]]:
    """When the other batches of a key had their images of the last day, and how many."""

    def validated(batch_id: str) -> Validated | None:
        return Record(record.store, record.scope_folder, batch_id).validated()

    # An input is read before its batch expires.
    oldest = now - DAY_SECONDS - WINDOW_SECONDS
    names = record.store.names(f"batches/{record.scope_folder}")
    ids = [
        name
        for name in names
        if is_id(name, PREFIX) and name != record.id and time_of_id(name, PREFIX) >= oldest
    ]
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        found = [one for one in pool.map(validated, ids) if one is not None]
    return [
        (one.at, one.images)
        for one in found
        if one.key == key and one.images is not None and one.at > now - DAY_SECONDS
    ]


def _free_at(used: list[tuple[float, int]], wanted: int) -> float:
    """When so many more images are free, by uses in the order of time that are as many at least."""
    freed = accumulate(count for _, count in used)
    return (
        next(at for (at, _), sum_ in zip(used, freed, strict=True) if sum_ >= wanted) + DAY_SECONDS
    )
