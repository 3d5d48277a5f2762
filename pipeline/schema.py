"""The row types that stages hand to one another, and the tables that users query.

Read this file first: the dataflow is these types in order.

    Shard -> ENCODED -> PREPARED -> DETECTED -> Receipt        (pipeline/dataflow.py)
                                        \\-> IMAGES, DETECTIONS  (pipeline/stages/publish.py)

Every stage is a function from one of these to the next; no stage imports another. Schemas are
explicit, because a schema inferred from a batch without boxes says `list<null>`.

A row whose `status` is not `OK` has failed: later stages pass it on untouched, so that a bad image
costs one row. The reasons are the constants below; `error` says it in words.
"""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

OK = "ok"
# Reasons of the reader.
UNREADABLE = "unreadable"  # the object could not be fetched (missing, forbidden, network)
EMPTY_FILE = "empty_file"  # zero bytes
CORRUPT_SHARD = "corrupt_shard"  # a tar or Parquet file broken at this point: one row for the rest
EMPTY_SHARD = "empty_shard"  # a tar or Parquet file without one image: one row for the shard
MISSING_BYTES = "missing_bytes"  # a Parquet row whose image column is null
TOO_LARGE = "too_large"  # more bytes than any picture has: left unread
CHANGED = "changed"  # not what was planned: another version lies there, which the next run labels
# Reasons of the decoder.
UNDECODABLE = "undecodable"  # not an image, or one that no decoder here reads
TRUNCATED = "truncated"  # the file ends before the picture does
TOO_MANY_PIXELS = "too_many_pixels"  # refused by its header
# Reasons of the detector.
DETECTOR_ERROR = "detector_error"  # the model failed on this image alone
# Reasons of all of them.
WORKER_CRASH = "worker_crash"  # the process that looked into it ended, whenever it did
TIMED_OUT = "timed_out"  # it took longer than any image should


@dataclass(frozen=True)
class Member:
    """One object of a shard: where it is and which version of it was planned."""

    uri: str
    etag: str  # the store's ETag, or "<mtime_ns>-<size>" of a local file
    size: int  # bytes; -1 where the store does not say


@dataclass(frozen=True)
class Shard:
    """A unit of reading: some loose files, one tar, or one Parquet file.

    `kind` is "files", "tar" or "parquet". A "files" shard has one image a member; the others have
    one member that holds any number of images.
    """

    shard: str
    kind: str
    members: tuple[Member, ...]
    limit: int | None = None  # images to read of a tar or Parquet file; None: all

    @property
    def size(self) -> int:
        """Bytes of all members whose size is known."""
        return sum(member.size for member in self.members if member.size > 0)


@dataclass(frozen=True)
class Done:
    """What a run that was killed had finished of a shard."""

    positions: tuple[int, ...] = ()  # ascending
    ended: bool = False  # whether the shard's last image is among them


NOTHING_DONE = Done()


@dataclass(frozen=True)
class Work:
    """What one task reads: shards of a row group of the plan, and what is finished of each."""

    group: int
    rows: list[int]  # of the group
    done: list[list[tuple[int, int]]]  # of each shard, positions from `start` to before `stop`
    ended: list[bool]  # of each shard, whether its last image is among them


# driver -> read, a row a shard: `Work` as a table.
SPAN = pa.struct([pa.field("start", pa.int64()), pa.field("stop", pa.int64())])
WORK = pa.schema(
    [
        pa.field("group", pa.int64()),
        pa.field("row", pa.int64()),
        pa.field("done", pa.list_(SPAN)),
        pa.field("ended", pa.bool_()),
    ]
)

# Columns that name an image from the first stage to the last.
_IDENTITY = [
    pa.field("image_id", pa.string()),
    pa.field("uri", pa.string()),
    pa.field("shard", pa.string()),
    pa.field("index_in_shard", pa.int64()),  # position among the shard's images, from 0
    # Number of images in the shard, on its last row alone (null elsewhere): it lets publishing
    # reconcile each shard, and a rerun leave finished shards closed.
    pa.field("shard_size", pa.int64()),
    pa.field("etag", pa.string()),
    pa.field("status", pa.string()),
    pa.field("error", pa.string()),
    pa.field("read_seconds", pa.float32()),  # waiting for this image's bytes
    pa.field("retries", pa.int32()),  # requests to the store that were repeated meanwhile
]

# read -> prepare: the file as it lies in the store (null where it could not be had).
ENCODED = pa.schema([*_IDENTITY, pa.field("encoded", pa.large_binary())])

# The size of an image as displayed, after EXIF orientation; null where it is not known.
_DISPLAYED = [
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("orientation", pa.int8()),  # the EXIF value that was undone, 1 where there is none
]

# prepare -> detect: RGB, resized, as (rows, columns, 3) uint8 bytes in C order.
PREPARED = pa.schema(
    [
        *_IDENTITY,
        *_DISPLAYED,
        pa.field("pixels", pa.large_binary()),
        pa.field("rows", pa.int32()),
        pa.field("columns", pa.int32()),
        pa.field("encoded_bytes", pa.int64()),  # of the file, or of the archive's member
        pa.field("prepare_seconds", pa.float32()),  # decode, convert and resize of this image
    ]
)

BOX = pa.struct(
    [
        pa.field("label_id", pa.int32()),
        pa.field("score", pa.float32()),
        pa.field("x_min", pa.float32()),
        pa.field("y_min", pa.float32()),
        pa.field("x_max", pa.float32()),
        pa.field("y_max", pa.float32()),
    ]
)

# detect -> stage: boxes nested, so that an image without any is still one row.
DETECTED = pa.schema(
    [
        *_IDENTITY,
        *_DISPLAYED,
        pa.field("boxes", pa.list_(BOX)),  # best score first; pixels of the displayed image
        pa.field("encoded_bytes", pa.int64()),
        pa.field("prepare_seconds", pa.float32()),
        pa.field("detect_seconds", pa.float32()),  # this image's share of its batch
        # Pictures that its detector takes at once, where memory does not hold as many as asked for.
        pa.field("batch_limit", pa.int32()),
        pa.field("processed_at", pa.timestamp("us", "UTC")),
    ]
)

# What users query: OUTPUT/images/ and OUTPUT/detections/.
# Also in the name of the folder; engines that take files by their footers read no such names.
RUN_ID = pa.field("run_id", pa.string())
IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("index_in_shard", pa.int64()),
        pa.field("status", pa.string()),
        pa.field("error", pa.string()),
        *_DISPLAYED,
        pa.field("num_detections", pa.int32()),
        pa.field("max_score", pa.float32()),
        pa.field("etag", pa.string()),
        pa.field("model", pa.string()),
        pa.field("model_fingerprint", pa.string()),
        pa.field("processed_at", pa.timestamp("us", "UTC")),
        RUN_ID,
    ]
)
DETECTIONS = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("detection", pa.int32()),  # 0 is the image's best
        pa.field("label_id", pa.int32()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("x_min", pa.float32()),
        pa.field("y_min", pa.float32()),
        pa.field("x_max", pa.float32()),
        pa.field("y_max", pa.float32()),
        RUN_ID,
    ]
)


@dataclass(frozen=True)
class Receipt:
    """What one staged block tells the driver: progress, failures and times come from these."""

    file: str
    shards: tuple[str, ...]
    images: int
    detections: int
    failed: dict[str, int] = field(default_factory=dict)  # status -> images
    encoded_bytes: int = 0  # of all images
    read_seconds: float = 0.0
    prepare_seconds: float = 0.0
    detect_seconds: float = 0.0
    stage_seconds: float = 0.0
    retries: int = 0  # requests to stores that were repeated
    batch_limit: int | None = None  # the smallest of DETECTED's
    finished_at: float = 0.0  # Unix time


# stage -> driver: `Receipt` as a row.
RECEIPT = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("shards", pa.list_(pa.string())),
        pa.field("images", pa.int64()),
        pa.field("detections", pa.int64()),
        pa.field("failed", pa.map_(pa.string(), pa.int64())),
        pa.field("encoded_bytes", pa.int64()),
        pa.field("read_seconds", pa.float64()),
        pa.field("prepare_seconds", pa.float64()),
        pa.field("detect_seconds", pa.float64()),
        pa.field("stage_seconds", pa.float64()),
        pa.field("retries", pa.int64()),
        pa.field("batch_limit", pa.int32()),
        pa.field("finished_at", pa.float64()),
    ]
)

# driver -> read back: a name of a staged file a row.
STAGED_FILE = pa.schema([pa.field("file", pa.string())])

# driver -> publish: a part of the tables as a row.
PART = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("shards", pa.list_(pa.string())),
        pa.field("files", pa.list_(pa.string())),
    ]
)

# publish -> driver: a file of the tables as a row.
PART_FILE = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
    ]
)

# staged files -> driver: positions of a shard that follow on one another in one file and have one
# status, from `start` to before `stop`; `shard_size` where one of them tells it. A file that is
# damaged has one row, without a shard.
RANGES = pa.schema(
    [
        ("shard", pa.string()),
        ("file", pa.string()),
        ("status", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("shard_size", pa.int64()),
    ]
)


def failed_row(schema: pa.Schema, row: dict[str, Any], status: str, error: str) -> dict[str, Any]:
    """`row` reduced to `schema`'s columns (absent ones null), marked as failed."""
    kept = {name: row.get(name) for name in schema.names}
    return {**kept, "status": status, "error": error}
