"""The answers of a batch: its output file and its error file, from what `label` wrote."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow.parquet as pq

from jobs.output.catalog import committed_runs
from jobs.output.views import add_views, explain_query_errors, limit_memory
from jobs.serve.batches.files import PREFIX, Files
from jobs.serve.batches.input import LINES, WANTED, error_of, rows_of
from jobs.serve.batches.records import Batch, RequestCounts
from jobs.serve.batches.room import STORAGE_LIMIT, bytes_of
from jobs.serve.batches.store import Store
from jobs.serve.http.chat import ChatRequest, completion
from jobs.serve.protocol.answers import Detection, Detections, ImageAnswer, ImageError, Usage
from jobs.serve.protocol.errors import ApiError
from jobs.serve.settings.settings import ApiSettings
from pipeline.schema import OK

MEMORY = "512MB"  # of DuckDB, which sorts larger data on disk
ROWS_AT_ONCE = 10_000
NOT_LABELLED = "not_labelled"  # the run ended before this image
# The answers of one batch, at most. A batch of 50,000 images of 100 boxes each has 350 MB.
MOST_ANSWER_BYTES = 2 << 30
IMAGES_AT_ONCE = 50_000  # that are joined with their boxes, and sorted
_WANTED = "SELECT * FROM wanted WHERE line BETWEEN $1 AND $2"
_ANSWERS = """
SELECT line, index, code, message, found.status, found.error, found.width, found.height,
    box.detection, box.label, box.score, box.x_min, box.y_min, box.x_max, box.y_max
FROM chosen
LEFT JOIN latest_images AS found ON chosen.uri = found.uri
LEFT JOIN detections AS box
    ON box.run = found.run AND box.shard = found.shard AND box.image_id = found.image_id
    AND box.score >= chosen.threshold
ORDER BY line, index, detection
"""
_IMAGE_COLUMNS = 8
GOOD, BAD = "output.jsonl", "error.jsonl"
_NO_ROOM = {
    "response": None,
    "error": {
        "code": STORAGE_LIMIT,
        "message": "There is no room for the answer: delete files, or make smaller batches.",
    },
}


@dataclass(frozen=True)
class Written:
    """The files of a batch, and what they count."""

    output_file_id: str | None
    error_file_id: str | None
    counts: RequestCounts


@dataclass(frozen=True)
class Unanswered:
    """Why images are not labelled, where the batch ended before."""

    status: Literal["expired", "cancelled"]
    message: str


class NoRoom(Exception):
    """Not even the errors of a batch have room."""


class OutputFiles:
    """Writes the answers of a batch, as far as its scope has room for them.

    Behind the first answer that has no room, all are errors, and nothing is looked up. Doing it
    again writes the same files.
    """

    def __init__(self, store: Store, folder: str, settings: ApiSettings, batch: Batch):
        self._store, self._folder = store, folder
        self._settings, self._batch = settings, batch
        self._ok = self._failed = 0
        self._is_full = False

    def write(
        self,
        files: Files,
        output: str,
        unanswered: Unanswered | None,
        pause: Callable[[], None] = lambda: None,
    ) -> Written:
        """Write the files. Raises NoRoom.

        `output` is that of `label`. `unanswered` says why it lacks images; None: it has all.
        `pause` is called between lines, and may raise.
        """
        with ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="detr-batch-"))
            good, bad = Path(scratch, GOOD), Path(scratch, BAD)
            with good.open("wb") as output_file, bad.open("wb") as error_file:
                room = self._room(files)
                for line, completed in self._lines(output, scratch, unanswered):
                    encoded = _encoded(line)
                    if completed and len(encoded) > room:
                        self._is_full = True
                        self._ok -= completed
                        self._failed += completed
                        encoded, completed = _encoded(line | _NO_ROOM), 0
                    if len(encoded) > room:
                        raise NoRoom
                    room -= len(encoded)
                    (output_file if completed else error_file).write(encoded)
                    pause()
            ids = [self._save(files, path) for path in (good, bad)]
        total = self._ok + self._failed
        counts = RequestCounts(total=total, completed=self._ok, failed=self._failed)
        return Written(ids[0], ids[1], counts)

    def _save(self, files: Files, path: Path) -> str | None:
        if not path.stat().st_size:
            return None
        name = f"{self._batch.id}_{path.name}"
        return files.save(path, name, "batch_output", self._file_id(path.name)).id

    def _file_id(self, name: str) -> str:
        ended_at = self._batch.finalizing_at or self._batch.created_at
        return f"{PREFIX}{ended_at * 1000:012x}{self._digest(name)[:24]}"

    def _room(self, files: Files) -> int:
        """Bytes that the answers may have. What is in the way of them is replaced."""
        own = [self._file_id(name) for name in (GOOD, BAD)]
        left = self._settings.max_stored_bytes - bytes_of(files.sizes(), without=own)
        return min(left, MOST_ANSWER_BYTES)

    def _lines(
        self, output: str, scratch: str, unanswered: Unanswered | None
    ) -> Iterator[tuple[dict[str, Any], int]]:
        """The lines of both files, and how many images each answers: of the error file, none."""
        with explain_query_errors(output), duckdb.connect() as connection:
            limit_memory(connection, MEMORY, scratch)
            add_views(connection, output, committed_runs(output))
            answers = self._images(connection)
            found = next(answers, None)
            with closing(self._store.open(f"{self._folder}/{LINES}")) as file:
                for row in rows_of(file):
                    images: list[ImageAnswer] = []
                    if found is not None and found[0] == row["line"]:
                        images, found = found[1], next(answers, None)
                    if self._is_full and error_of(row) is None:
                        self._failed += row["images"]
                        yield self._head(row) | _NO_ROOM, 0
                    else:
                        yield self._line(row, images, unanswered)

    def _images(
        self, connection: duckdb.DuckDBPyConnection
    ) -> Iterator[tuple[int, list[ImageAnswer]]]:
        """The images of each line, in order, until the answers are full."""
        with closing(self._store.open(f"{self._folder}/{WANTED}")) as file:
            wanted = pq.read_table(file)
        connection.register("wanted", wanted)
        lines = wanted["line"].to_numpy()  # ascending
        first = 0
        while first < len(lines) and not self._is_full:
            # A line has few images, and they stay together.
            last = lines[min(first + IMAGES_AT_ONCE, len(lines)) - 1]
            rows = groupby(
                _rows(connection, int(lines[first]), int(last)),
                key=itemgetter(*range(_IMAGE_COLUMNS)),
            )
            images = ((key[0], _image(key[1:], [box[_IMAGE_COLUMNS:] for box in boxes]))
                      for key, boxes in rows)  # fmt: skip
            for line, some in groupby(images, key=itemgetter(0)):
                yield line, [image for _, image in some]
                if self._is_full:
                    break
            first = int(np.searchsorted(lines, last, "right"))

    def _line(
        self, row: dict[str, Any], images: list[ImageAnswer], unanswered: Unanswered | None
    ) -> tuple[dict[str, Any], int]:
        error = error_of(row)
        codes = [image.error.code for image in images if image.error is not None]
        if error is not None:
            self._failed += 1
            return self._refused(row, error), 0
        completed = len(images) - len(codes)
        self._ok += completed
        self._failed += len(codes)
        if unanswered is not None and NOT_LABELLED in codes:
            reason = {"code": f"batch_{unanswered.status}", "message": unanswered.message}
            return {**self._head(row), "response": None, "error": reason}, 0
        if not completed:
            return self._refused(row, _all_failed(images)), 0
        try:
            body = self._body(row, images)
        except ApiError as refused:
            return self._refused(row, refused), 0
        answer = {"response": self._response(row, 200, body), "error": None}
        return self._head(row) | answer, completed

    def _body(self, row: dict[str, Any], images: list[ImageAnswer]) -> dict[str, Any]:
        """The answer that the route of the batch would give. Raises ApiError as it."""
        ok = sum(image.status == "ok" for image in images)
        usage = Usage(images=ok, cost_usd=self._settings.cost_of(ok))
        digest, model = self._digest(f"answer {row['line']}")[:24], self._batch.model or ""
        created = self._batch.finalizing_at or self._batch.created_at
        if self._batch.endpoint == "/v1/detections":
            answer = Detections(
                id=f"det_{digest}", created=created, model=model, data=images, usage=usage
            )
            return answer.model_dump(mode="json")
        wanted = row["response_format"]
        chat = ChatRequest.model_validate(
            {
                "model": model,
                "messages": [{"role": "user"}],
                "response_format": wanted and json.loads(wanted),
            }
        )
        return completion(chat, images, usage).model_dump(mode="json") | {
            "id": f"chatcmpl-{digest}",
            "created": created,
        }

    def _head(self, row: dict[str, Any]) -> dict[str, Any]:
        digest = self._digest(f"line {row['line']}")[:24]
        return {"id": f"batch_req_{digest}", "custom_id": row["custom_id"]}

    def _response(self, row: dict[str, Any], status: int, body: dict[str, Any]) -> dict[str, Any]:
        digest = self._digest(f"request {row['line']}")[:32]
        return {"status_code": status, "request_id": f"req_{digest}", "body": body}

    def _refused(self, row: dict[str, Any], error: ApiError) -> dict[str, Any]:
        response = self._response(row, error.status, error.body())
        return {**self._head(row), "response": response, "error": None}

    def _digest(self, text: str) -> str:
        """Random to others, and the same each time that the files are written."""
        return hashlib.sha256(f"{self._batch.id} {text}".encode()).hexdigest()


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _rows(
    connection: duckdb.DuckDBPyConnection, first: int, last: int
) -> Iterator[tuple[Any, ...]]:
    """The rows of `_ANSWERS` of some lines."""
    cursor = connection.execute(f"WITH chosen AS ({_WANTED}) {_ANSWERS}", [first, last])
    while rows := cursor.fetchmany(ROWS_AT_ONCE):
        yield from rows


def _image(image: tuple[Any, ...], boxes: list[tuple[Any, ...]]) -> ImageAnswer:
    """The answer for an image, from a row of `_ANSWERS` and its boxes."""
    index, code, message, status, error, width, height = image
    if code is None and status is None:
        code, message = NOT_LABELLED, "the image was not labelled"
    elif code is None and status != OK:
        code, message = status, error or status
    if code is not None:
        reason = ImageError(code=code, message=message)
        return ImageAnswer(index=index, status="failed", width=width, height=height, error=reason)
    found = [
        Detection(label=label or "", score=score, box=(x_min, y_min, x_max, y_max))
        for number, label, score, x_min, y_min, x_max, y_max in boxes
        if number is not None
    ]
    return ImageAnswer(index=index, status="ok", width=width, height=height, detections=found)


def _all_failed(images: list[ImageAnswer]) -> ApiError:
    """The error of a request whose images all failed."""
    first = images[0].error
    assert first is not None
    text = "The image failed" if len(images) == 1 else f"All {len(images)} images failed; the first"
    return ApiError(400, f"{text}: {first.message}", first.code, "images")
