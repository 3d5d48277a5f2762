"""Print the results of commands on stdout, as text or as JSON, or write a page to a file."""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.storage.errors import InputError
from pipeline.storage.protocols import is_local
from pipeline.storage.urls import mask, printable

PAGE, PAGE_WITHIN = b"<title>detr-batch", 4096  # what our pages have in their first bytes


def show(document: Any, as_text: Callable[[Any], str], for_programs: bool) -> None:
    """Print a document as JSON, or as text without secrets and terminal control characters."""
    print(json.dumps(document, indent=1) if for_programs else printable(mask(as_text(document))))


def check_page(output: str, file: str) -> None:
    """Raise InputError if a page must not be written to a path or URL: if it holds anything else.

    A page that is written to a store is one object, so that its folder need not exist.
    """
    # Slow to import, as is what follows.
    from jobs.output.protected_files import refuse_within_output
    from pipeline.storage.explained_errors import explain_errors
    from pipeline.storage.files import open_location, read_object
    from pipeline.storage.retries import retry

    fs, path = open_location(file, "--html")
    shown = f"--html {mask(file)}"
    if "http" in fs.protocol:
        raise InputError(f"{shown}: web addresses cannot be written to; give s3:// or a path")
    refuse_within_output(output, file, "--html")
    with explain_errors("--html", file):
        if file.endswith("/") or retry(fs.isdir, path):
            raise InputError(f"{shown} is a folder: give a file")
        if is_local(file) and not Path(path).parent.is_dir():
            raise InputError(f"{shown}: its folder does not exist; make it first")
        start = b""
        if not is_local(file) or Path(path).is_file():  # a pipe is no file
            with suppress(FileNotFoundError):
                start = read_object(fs, path, PAGE_WITHIN)
    if start and PAGE not in start:
        raise InputError(f"{shown} is no page of detr-batch: give another file")


def write_page(page: str, file: str) -> None:
    """Write HTML to a path or URL, all of it or nothing, and print where it is."""
    from jobs.exports.place import one_file
    from pipeline.storage.files import open_location

    place = Path(open_location(file, "--html")[1]) if is_local(file) else None
    if place is not None and place.exists() and not place.is_file():  # a pipe
        place.write_text(page, encoding="utf-8")
    else:
        # A link stays, and leads to the page.
        with one_file(file if place is None else str(place.resolve())) as text:
            text.write(page)
    print(f"written to {printable(mask(file))}", file=sys.stderr)
