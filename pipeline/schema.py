"""The row types that stages hand to one another, and the tables that users query.

Read this file first: the dataflow is these types in order.

    Shard -> ENCODED -> PREPARED -> DETECTED -> Receipt        (pipeline/dataflow.py)
                                        \\-> IMAGES, DETECTIONS  (pipeline/stages/publish.py)

Each stage is a function from one row type to the next. No stage imports another stage. Schemas are
explicit, because a schema that is inferred from a batch without boxes contains `list<null>`.

In a run that carries columns of INPUT along, the rows from ENCODED to DETECTED have two more
columns (`with_carried` in carry/columns.py): a struct of the values, and the number of values that
could not be carried. IMAGES has the carried columns themselves.

A row whose `status` is not `OK` has failed. Later stages pass it on unchanged, so that a bad image
costs one row. The values of `status` are the constants below; `error` describes the failure.
"""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.carry.columns import CARRIED, NO_CARRY, NOT_CARRIED, Carry
from pipeline.carry.values import PlainRow, plain_struct
from pipeline.gpu.reading import GPU, GpuReading

OK = "ok"
# Failures in the reader.
UNREADABLE = "unreadable"  # the object could not be fetched (missing, forbidden, network)
ADDRESS_NOT_ALLOWED = "address_not_allowed"  # DETR_BATCH_IMAGE_HOSTS leaves it out
UNAVAILABLE = "unavailable"  # the store failed, but only for this object; the next run tries again
EMPTY_FILE = "empty_file"  # zero bytes
CORRUPT_SHARD = "corrupt_shard"  # a tar or Parquet file is broken here: one row for its rest
EMPTY_SHARD = "empty_shard"  # a tar or Parquet file holds no image: one row for the shard
MISSING_BYTES = "missing_bytes"  # a Parquet row whose image column is null
TOO_LARGE = "too_large"  # the file has more bytes than the limit and was not read
CHANGED = "changed"  # the object is not the planned version; the next run labels the new one
# Failures in the decoder.
UNDECODABLE = "undecodable"  # not an image, or a format that no decoder here reads
TRUNCATED = "truncated"  # the file ends before the image is complete
TOO_MANY_PIXELS = "too_many_pixels"  # the header announces more pixels than the limit
# Failures in the detector.
DETECTOR_ERROR = "detector_error"  # the model failed on this image alone
# Failures in the reader, the decoder or the detector.
WORKER_CRASH = "worker_crash"  # the process that handled the image ended at each attempt
TIMED_OUT = "timed_out"  # the image took longer than the time limit of the stage

# Which images are labelled again although their objects are as they were. All other failures are of
# the bytes and last: the same bytes fail again.
ALWAYS_RETRIED = frozenset({CHANGED, UNAVAILABLE})
# Failures to fetch the planned version. They do not take the place of labels that the object has.
NOT_FETCHED = (CHANGED, UNAVAILABLE, UNREADABLE, ADDRESS_NOT_ALLOWED)
# Failures that may be due to --format, --image-column or --id-column.
FAILED_BY_READING = (CORRUPT_SHARD, EMPTY_SHARD, MISSING_BYTES, UNDECODABLE)
# By label --retry-failed.
RETRIED_ON_REQUEST = frozenset({UNREADABLE, ADDRESS_NOT_ALLOWED, WORKER_CRASH, TIMED_OUT})


@dataclass(frozen=True)
class Member:
    """One object of a shard: its address and the version that was planned."""

    uri: str
    etag: str  # the store's version of it (storage/versions.py), or one of those below
    size: int  # bytes; -1 if the store does not report the size
    # What its list says of it: the values that are carried along, and the number of those that
    # could not be carried. None if it is in no list with such columns.
    carried: tuple[PlainRow, int] | None = field(default=None, compare=False)

    @property
    def is_unversioned(self) -> bool:
        """Whether its store reports at most its size, so that a replacement may go unnoticed."""
        is_size = self.etag.isdecimal() and self.etag == str(self.size)
        return is_size or self.etag == UNVERSIONED


UNSEEN = "None"  # `etag` of an object that the listing could not look at. Labels stay.
UNVERSIONED = "no-version"  # `etag` of an object whose store reports neither version nor size
# `etag` of an object of a list that planning did not reach, while it reached others. Labels stay.
UNREACHED = "unreached"
# `etag` of what its list may not name, and that is never opened: a local file in a remote list, an
# object in a bucket that DETR_BATCH_IMAGE_HOSTS leaves out.
NOT_ALLOWED = "not-allowed"


@dataclass(frozen=True)
class Shard:
    """A unit of reading: some loose files, one tar, or one Parquet file.

    `kind` is "files", "tar" or "parquet". A "files" shard has one image per member. The other kinds
    have one member that holds any number of images.
    """

    shard: str
    kind: str
    members: tuple[Member, ...]
    limit: int | None = None  # number of images to read from a tar or Parquet file; None: all
    # Columns of a Parquet file that the user named (--image-column, --id-column); None: chosen by
    # the reader.
    image_column: str | None = None
    id_column: str | None = None
    access: str | None = None  # how its store is asked (--input-access), see storage/access.py
    carry: Carry = NO_CARRY  # the columns that its images carry along (--carry)

    @property
    def size(self) -> int:
        """Bytes of all members whose size is known."""
        return sum(member.size for member in self.members if member.size > 0)


@dataclass(frozen=True)
class Done:
    """The images of a shard that an interrupted run had already staged."""

    positions: tuple[int, ...] = ()  # positions of the images in the shard, ascending
    ended: bool = False  # whether the shard's last image is one of them


NOTHING_DONE = Done()


@dataclass(frozen=True)
class Work:
    """The shards that one task reads, and the images of each shard that are already staged.

    All shards are from one row group of the plan.
    """

    group: int  # number of the row group
    rows: list[int]  # row numbers of the shards within the group
    done: list[list[tuple[int, int]]]  # for each shard, spans of positions: [start, stop)
    ended: list[bool]  # for each shard, whether its last image is in `done`


# driver -> read: `Work` as a table, one row per shard.
SPAN = pa.struct([pa.field("start", pa.int64()), pa.field("stop", pa.int64())])
WORK = pa.schema(
    [
        pa.field("group", pa.int64()),
        pa.field("row", pa.int64()),
        pa.field("done", pa.list_(SPAN)),
        pa.field("ended", pa.bool_()),
    ]
)

# Columns that identify an image in every stage.
_IDENTITY = [
    pa.field("image_id", pa.string()),
    pa.field("uri", pa.string()),
    pa.field("shard", pa.string()),
    pa.field("index_in_shard", pa.int64()),  # position among the shard's images, from 0
    # Number of images in the shard. Only the last row of the shard has it; other rows have null.
    # Publishing uses it to reconcile each shard. A rerun uses it to skip finished shards.
    pa.field("shard_size", pa.int64()),
    pa.field("etag", pa.string()),
    pa.field("status", pa.string()),
    pa.field("error", pa.string()),
    pa.field("read_seconds", pa.float32()),  # time spent waiting for this image's bytes
    pa.field("retries", pa.int32()),  # requests to the store that were repeated in that time
]

# read -> prepare: the bytes of the image file (null if they could not be read).
ENCODED = pa.schema([*_IDENTITY, pa.field("encoded", pa.large_binary())])

# The size of an image as displayed, in pixels after EXIF orientation; null if it is not known.
_DISPLAYED = [
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("orientation", pa.int8()),  # the EXIF value that was undone; 1 if there is none
]

# prepare -> detect: the RGB image as (rows, columns, 3) uint8 bytes in C order, resized for the
# model, or as displayed where the detector is to enlarge it (`ResizeRule.prepared_size`). Of a JPEG
# that the detector is to decode these are null, and `encoded` has its bytes.
PREPARED = pa.schema(
    [
        *_IDENTITY,
        *_DISPLAYED,
        pa.field("pixels", pa.large_binary()),
        pa.field("rows", pa.int32()),
        pa.field("columns", pa.int32()),
        pa.field("encoded", pa.large_binary()),
        pa.field("encoded_bytes", pa.int64()),  # size of the file or of the archive's member
        pa.field("prepare_seconds", pa.float32()),  # time to decode, convert and resize this image
    ]
)

# formats -> read, and decode -> prepare: what a child process answers to its worker.
FETCHED = pa.schema(
    [
        ENCODED.field(name)
        for name in ("image_id", "uri", "etag", "status", "error", "retries", "encoded")
    ]
)
DECODED = pa.schema(
    [
        PREPARED.field("status"),
        PREPARED.field("error"),
        *_DISPLAYED,
        PREPARED.field("pixels"),
        PREPARED.field("rows"),
        PREPARED.field("columns"),
        PREPARED.field("prepare_seconds"),
    ]
)


def fetched_schema(carry: Carry) -> pa.Schema:
    """FETCHED, with the plain values of what a run carries along (carry/values.py)."""
    if not carry:
        return FETCHED
    plain = pa.field(CARRIED, plain_struct(carry))
    return pa.schema([*FETCHED, plain, pa.field(NOT_CARRIED, pa.int32())])


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

# detect -> stage: boxes are nested, so that an image without boxes is still one row.
DETECTED = pa.schema(
    [
        *_IDENTITY,
        *_DISPLAYED,
        pa.field("boxes", pa.list_(BOX)),  # highest score first; in pixels of the displayed image
        pa.field("encoded_bytes", pa.int64()),
        pa.field("prepare_seconds", pa.float32()),
        pa.field("detect_seconds", pa.float32()),  # this image's share of its batch's time
        pa.field("computation", pa.string()),  # what decided the bits, see model/computation.py
        pa.field("processed_at", pa.timestamp("us", "UTC")),
        # Whether the image is a JPEG that the detector was to decode, and whose decoder refused it.
        pa.field("is_refused", pa.bool_()),
        # The first row of what a detector returns has these two; other rows have null.
        pa.field("canaries", pa.string()),  # what it gave for canaries last, see stages/canaries.py
        pa.field("gpu", GPU),
    ]
)

# The published tables that users query: OUTPUT/images/ and OUTPUT/detections/.
# The run id is also in the folder names, but engines that find files by their footers do not read
# folder names.
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


def images_schema(carry: Carry) -> pa.Schema:
    """IMAGES of a run that carries columns along. They have names of their own, and come last."""
    return pa.schema([*IMAGES, *carry.fields()])


DETECTIONS = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("detection", pa.int32()),  # rank by score within the image; 0 has the highest
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
    """Summary of one staged block for the driver.

    The driver computes progress, failures and times from receipts.
    """

    file: str  # name of the staged file
    shards: tuple[str, ...]
    images: int
    detections: int
    failed: dict[str, int] = field(default_factory=dict)  # status -> number of images
    encoded_bytes: int = 0  # sum over all images
    read_seconds: float = 0.0
    prepare_seconds: float = 0.0
    detect_seconds: float = 0.0
    stage_seconds: float = 0.0
    retries: int = 0  # requests to stores that were repeated
    computation: str | None = None  # the column of DETECTED, which is equal for all images
    finished_at: float = 0.0  # Unix time
    canaries: tuple[str, ...] = ()  # the columns `canaries` and `gpu` of DETECTED
    gpu: tuple[GpuReading, ...] = ()
    refused: int = 0  # JPEGs that the decoder of the device refused; CPUs decoded them


# stage -> driver: one `Receipt` per row.
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
        pa.field("computation", pa.string()),
        pa.field("finished_at", pa.float64()),
        pa.field("canaries", pa.list_(pa.string())),
        pa.field("gpu", pa.list_(GPU)),
        pa.field("refused", pa.int64()),
    ]
)

# driver -> read back: one name of a staged file per row.
STAGED_FILE = pa.schema([pa.field("file", pa.string())])

# driver -> publish: one part of the published tables per row.
PART = pa.schema(
    [
        pa.field("number", pa.int64()),
        pa.field("shards", pa.list_(pa.string())),
        pa.field("files", pa.list_(pa.string())),
    ]
)

# publish -> driver: one file of the published tables per row.
PART_FILE = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("near_duplicates_same_class", pa.int64()),
        pa.field("near_duplicates_any_class", pa.int64()),
        pa.field("not_carried", pa.int64()),
    ]
)

# staged files -> driver: one range of positions [start, stop) per row. All images of a range are in
# one shard and one file and have one status; together they have `boxes` boxes. `shard_size` is set
# if a row of the range has it.
# Each text of `canaries` stands once, whichever files hold it. A damaged file has one row whose
# `shard` is null.
RANGES = pa.schema(
    [
        ("shard", pa.string()),
        ("file", pa.string()),
        ("status", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("shard_size", pa.int64()),
        ("boxes", pa.int64()),
        ("canaries", pa.list_(pa.string())),
    ]
)


def failed_row(schema: pa.Schema, row: dict[str, Any], status: str, error: str) -> dict[str, Any]:
    """A copy of `row` with the columns of `schema`, marked as failed; absent columns are null."""
    columns = {name: row.get(name) for name in schema.names}
    return {**columns, "status": status, "error": error}
