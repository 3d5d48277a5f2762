"""How commands answer: on stdout for people or for programs, or with a page in a file."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.storage.urls import mask, printable


def show(document: Any, as_text: Callable[[Any], str], for_programs: bool) -> None:
    """Print a document as JSON, or in words without secrets or signs that drive a terminal."""
    print(json.dumps(document, indent=1) if for_programs else printable(mask(as_text(document))))


def write_page(page: str, file: Path) -> None:
    """Write HTML into a file, and say so."""
    file.write_text(page, encoding="utf-8")
    print(f"written to {printable(str(file))}", file=sys.stderr)
