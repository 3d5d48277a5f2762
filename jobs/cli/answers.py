"""Print the results of commands on stdout, as text or as JSON, or write a page to a file."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.storage.urls import mask, printable


def show(document: Any, as_text: Callable[[Any], str], for_programs: bool) -> None:
    """Print a document as JSON, or as text without secrets and terminal control characters."""
    print(json.dumps(document, indent=1) if for_programs else printable(mask(as_text(document))))


def write_page(page: str, file: Path) -> None:
    """Write HTML to a file, and print the name of the file."""
    file.write_text(page, encoding="utf-8")
    print(f"written to {printable(str(file))}", file=sys.stderr)
