"""The images that the batches of a key had in the last 24 hours, counted in the store.

    used/<hash of the key>/<batch>.<second>.<images>    an empty object for each batch

So all servers over one store, and those that were started again, count the same.
"""

import math
import time
from itertools import accumulate

from jobs.serve.batches.records import Allowance, BatchError, Record
from jobs.serve.batches.store import Store, folder_of_scope

USED = "batches/used"
DAY_SECONDS = 24 * 3600


def take_images(allowance: Allowance, record: Record, images: int) -> BatchError | None:
    """Take images from the day of a key for a batch, once. Returns why it may not have them."""
    now, folder = int(time.time()), f"{USED}/{folder_of_scope(allowance.key)}"
    used = _used(record.store, folder, now)
    if record.id in used:  # a server was killed before it wrote that the input is read
        return None
    left = max(0, allowance.images - sum(count for _, count in used.values()))
    if images <= left:
        record.store.write(f"{folder}/{record.id}.{now}.{images}", b"")
        return None
    text = (
        f"The batch has {images} images. The batches of its key may have {allowance.images} in 24 "
        f"hours, and {left} are left"
    )
    wait, advice = "", "make smaller batches"
    if images <= allowance.images:
        seconds = _free_at(sorted(used.values()), images - left) - now
        wait, advice = f" for {math.ceil(seconds / 60)} minutes", "create it again then"
    return BatchError(code="rate_limit_exceeded", message=f"{text}{wait}: {advice}.")


def _used(store: Store, folder: str, now: int) -> dict[str, tuple[int, int]]:
    """When batches had their images of the last day, and how many, by their ids.

    What is older is removed.
    """
    used = {}
    for name in store.names(folder):
        batch_id, at, images = name.split(".")
        if int(at) > now - DAY_SECONDS:
            used[batch_id] = int(at), int(images)
        else:
            store.remove(f"{folder}/{name}")
    return used


def _free_at(used: list[tuple[int, int]], wanted: int) -> int:
    """The second at which so many more images are free, by uses in the order of time."""
    freed = accumulate(count for _, count in used)
    at = next(at for (at, _), total in zip(used, freed, strict=True) if total >= wanted)
    return at + DAY_SECONDS
