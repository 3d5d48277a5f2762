"""Print the results of commands on stdout, as text or as JSON, or write a page to a file."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.storage.errors import InputError
from pipeline.storage.urls import mask, printable

PAGE, PAGE_WITHIN = b"<title>detr-batch", 4096  # what our pages have in their first bytes


def show(document: Any, as_text: Callable[[Any], str], for_programs: bool) -> None:
    """Print a document as JSON, or as text without secrets and terminal control characters."""
    print(json.dumps(document, indent=1) if for_programs else printable(mask(as_text(document))))


def check_page(output: str, file: Path) -> None:
    """Raise InputError if a page must not be written to `file`: if it holds anything else."""
    # Slow to import, as is what follows.
    from jobs.output.protected_files import refuse_within_output

    refuse_within_output(output, file, "--html")
    if file.is_dir():
        raise InputError(f"--html {file} is a folder: give a file")
    if not file.parent.is_dir():
        raise InputError(f"--html {file}: its folder does not exist; make it first")
    if file.is_file():
        with file.open("rb") as content:
            start = content.read(PAGE_WITHIN)
        if start and PAGE not in start:
            raise InputError(f"--html {file} is no page of detr-batch: give another file")


def write_page(page: str, file: Path) -> None:
    """Write HTML to a file, all of it or nothing, and print the name of the file."""
    from jobs.exports.place import one_file

    if file.exists() and not file.is_file():  # a pipe
        file.write_text(page, encoding="utf-8")
    else:
        with one_file(str(file.resolve())) as text:  # a link stays, and leads to the page
            text.write(page)
    print(f"written to {printable(str(file))}", file=sys.stderr)
