"""Count the images of an archive, for `--limit`. It runs in a child, as readers do."""

from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

import pyarrow as pa

from pipeline.formats.members import open_member
from pipeline.formats.parquet import open_parquet
from pipeline.formats.parquet_columns import Columns
from pipeline.formats.tars import tar_images
from pipeline.isolation.child import Row
from pipeline.schema import Shard
from pipeline.storage.access import use_input_access
from pipeline.storage.errors import StorageUnavailable
from pipeline.storage.explained_errors import describe_error
from pipeline.storage.files import open_object
from pipeline.storage.retries import is_transient, is_unknown_host

COUNT = pa.schema([pa.field("images", pa.int64())])


def count_images(shard: Shard, most: int) -> Iterator[Row]:
    """Yield a row of COUNT: the number of images in a tar or Parquet file, at most `most`.

    It is at least 1, because a broken or empty file becomes one row.

    Raises StorageUnavailable if the store is unavailable.
    """
    use_input_access(shard.access)
    member, count = shard.members[0], 0
    try:
        with open_object(*open_member(member, "shard")) as file:
            if shard.kind == "parquet":
                count = _count_in_parquet(file, shard.image_column, most)
            else:
                for _ in islice(tar_images(file, with_bytes=False), most):
                    count += 1
    except Exception as error:  # files break in many ways; the row of the file will say how
        if is_transient(error) and not is_unknown_host(error, member.uri):
            raise StorageUnavailable(describe_error(error, member.uri)) from error
        count += 1
    yield {"images": max(count, 1)}


def _count_in_parquet(file: BinaryIO, image_column: str | None, most: int) -> int:
    """The number of images in a Parquet file, at most `most`: that many if a row may hold several.

    The footer says how many elements the lists of a column have, but Arrow ends the process when
    that part of a footer is damaged in some ways.
    """
    parquet = open_parquet(file)
    candidates = Columns(parquet).image_candidates(image_column)
    is_listed = any(leaf.is_listed for leaf in candidates)
    return most if is_listed else min(parquet.metadata.num_rows, most)
