"""Forms of requests: fields are short and in UTF-8, and files are what may be large."""

import logging
from contextlib import aclosing

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from jobs.serve.protocol.errors import ApiError
from jobs.serve.protocol.parsing import shown

FORM = "multipart/form-data"
LONGEST_FIELD = 4 << 10  # bytes of a field that is no file
# Others would let a client choose a codec, and some take seconds for what a field may hold.
CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")
# It warns of each sign that a client has wrong, which its answer says.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


def is_form(request: Request) -> bool:
    """Whether the body of a request is a form with files."""
    return _content_type(request)[0] == FORM.encode()


async def read_form(
    request: Request, most_files: int, most_fields: int, in_memory: int
) -> FormData:
    """The form in a body, which is to be closed. Raises ApiError if it is none that can be read.

    A file of more than `in_memory` bytes is on the disk.
    """
    charset = _content_type(request)[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.strip().lower() not in CHARSETS:
        text = f"The form is in `{shown(charset)}`: send it in utf-8, or name no charset."
        raise ApiError(415, text, "unsupported_charset")
    async with aclosing(request.stream()) as stream:
        parser = MultiPartParser(
            request.headers,
            stream,
            max_files=most_files,
            max_fields=most_fields,
            max_part_size=LONGEST_FIELD,
        )
        parser.spool_max_size = in_memory
        try:
            return await parser.parse()
        except MultiPartException as error:
            raise ApiError(400, f"The form is wrong: {error.message}", "invalid_form") from error


def _content_type(request: Request) -> tuple[bytes, dict[bytes, bytes]]:
    return parse_options_header(request.headers.get("content-type"))
