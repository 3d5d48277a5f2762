"""The lines of a batch's input: which requests they hold, and what is wrong with them.

As at OpenAI, a line that is no request of the batch fails the whole batch before anything runs: no
JSON, a `custom_id` that is missing or repeated, another method, URL or model. What is wrong in the
body of a request costs this request alone.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from jobs.serve.batches.records import BatchError, Endpoint
from jobs.serve.http.chat import ChatRequest, images_of
from jobs.serve.http.detections import DetectionsRequest
from jobs.serve.protocol.counting import has_more_values
from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import parse_document, repr_of, shown
from jobs.serve.protocol.response_format import check_format

MOST_LINES = 50_000
LONGEST_LINE = 64 << 20  # bytes, as of the body of a request
MOST_LINE_VALUES = 100_000  # beyond it nothing is parsed; a request has MOST_VALUES
LONGEST_ID = 512  # characters
ERRORS_SHOWN = 20
CHAT: Endpoint = "/v1/chat/completions"


@dataclass(frozen=True)
class Line:
    """A line that is a request of the batch."""

    number: int  # from 1
    custom_id: str
    images: Sequence[str] = ()  # addresses
    threshold: float | None = None
    response_format: str | None = None  # JSON, of a chat
    error: ApiError | None = None  # why the request fails


@dataclass
class InvalidInput(Exception):
    """The batch fails."""

    errors: list[BatchError]


@dataclass
class Lines:
    """Reads the lines of an input."""

    file: BinaryIO
    endpoint: Endpoint
    model: str
    most_images: int  # of a line
    _ids: set[str] = field(default_factory=set)
    _errors: list[BatchError] = field(default_factory=list)

    def __iter__(self) -> Iterator[Line]:
        """Yield the lines that are not empty. Raises InvalidInput once the last one is read."""
        number = count = 0
        while text := self.file.readline(LONGEST_LINE + 1):
            number += 1
            if len(text) > LONGEST_LINE:
                self._add("line_too_long", number, f"has more than {LONGEST_LINE} bytes")
                break
            if not text.strip():
                continue
            count += 1
            if count > MOST_LINES:
                self._add("too_many_lines", number, f"is one more than the {MOST_LINES} allowed")
                break
            line = self._line(number, text)
            if line is not None:
                yield line
            if len(self._errors) >= ERRORS_SHOWN:
                break
        if not count and not self._errors:
            self._errors.append(BatchError(code="empty_file", message="The file has no lines."))
        if self._errors:
            raise InvalidInput(self._errors)

    def _line(self, number: int, text: bytes) -> Line | None:
        """The line; None for one that fails the batch."""
        if has_more_values(text, MOST_LINE_VALUES):
            self._add("too_many_values", number, f"has more than {MOST_LINE_VALUES:,} values")
            return None
        try:
            given = json.loads(text.decode("utf-8-sig"))  # what is counted is UTF-8
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            self._add("invalid_json_line", number, "is no JSON object")
            return None
        if problem := self._problem(given):
            code, param, reason = problem
            self._add(code, number, reason, param)
            return None
        custom_id: str = given["custom_id"]
        self._ids.add(custom_id)
        try:
            return self._request(number, custom_id, given["body"])
        except ApiError as error:
            return Line(number, custom_id, error=error)

    def _problem(self, given: dict[str, Any]) -> tuple[str, str, str] | None:
        """The code, the parameter and the reason for which a line is no request of the batch."""
        custom_id, body = given.get("custom_id"), given.get("body")
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_ID:
            return "invalid_custom_id", "custom_id", f"has no custom_id of 1 to {LONGEST_ID} signs"
        if not is_utf8(custom_id):
            return "invalid_custom_id", "custom_id", "has a custom_id that is no valid text"
        if custom_id in self._ids:
            return "duplicate_custom_id", "custom_id", "has the custom_id of an earlier line"
        if given.get("method") != "POST":
            return "invalid_method", "method", "has another method than POST"
        if given.get("url") != self.endpoint:
            return "invalid_url", "url", f"has another url than the batch, {self.endpoint}"
        if not isinstance(body, dict):
            return "missing_required_parameter", "body", "has no body"
        if body.get("model") != self.model:
            named = shown(repr_of(body.get("model")))
            return "model_not_found", "body.model", f"names the model {named}, not {self.model}"
        return None

    def _request(self, number: int, custom_id: str, body: dict[str, Any]) -> Line:
        """The request in a body. Raises ApiError if something is wrong with it."""
        if self.endpoint == CHAT:
            chat = parse_document(ChatRequest, body)
            check_format(chat.response_format)
            images, threshold, wanted = images_of(chat), chat.threshold, chat.response_format
        else:
            asked = parse_document(DetectionsRequest, body)
            images, threshold, wanted = [*asked.images], asked.threshold, None
        if len(images) > self.most_images:
            text = f"The request has {len(images)} images, and {self.most_images} are allowed."
            raise ApiError(400, text, "too_many_images")
        shape = None if wanted is None else wanted.model_dump_json(by_alias=True)
        return Line(number, custom_id, images, threshold, shape)

    def _add(self, code: str, line: int, reason: str, param: str | None = None) -> None:
        text = f"Line {line} {reason}."
        self._errors.append(BatchError(code=code, message=text, param=param, line=line))


def is_utf8(text: str) -> bool:
    """Whether a text can be written: JSON may hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
