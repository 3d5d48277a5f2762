"""Links, headings, paths in backticks and modules that the documents name exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"node_modules", "demo", "build", "dist"}  # folders left out, beside all hidden ones
ROOMS = ("model", "pipeline", "jobs", "tests", "infra")
DOCUMENTS = sorted(
    file
    for file in ROOT.rglob("*.md")
    if not any(
        part in LEFT_OUT or part.startswith(".") for part in file.relative_to(ROOT).parts[:-1]
    )
)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4}.*$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
# A path below one of our rooms. A path with <...>, * or {...} stands for several; none matches.
OURS = re.compile(rf"(?:\.\./)*(?:{'|'.join(ROOMS)}|\.ci)/[\w./-]*\w/?")
LOOSE = re.compile(r"[\w-]+\.py")  # a file that is named without its folder
MODULE = re.compile(rf"-m ((?:{'|'.join(ROOMS)})(?:\.\w+)+)")


def prose(file: Path) -> str:
    """Read a document without its blocks of code."""
    return INDENTED.sub("", FENCED.sub("", file.read_text(encoding="utf-8")))


def headings(file: Path) -> set[str]:
    """Return the anchors that a forge gives to the headings of a document."""
    titles = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(file: Path) -> Iterator[str]:
    for link in LINK.findall(prose(file)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        if not target.exists() or (anchor and anchor not in headings(target)):
            yield link


def absent_paths(file: Path) -> Iterator[str]:
    names = {path.name for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    for code in CODE.findall(prose(file)):
        path = code.split("#")[0]
        if OURS.fullmatch(path):
            if not (ROOT / path).exists() and not (file.parent / path).exists():
                yield code
        elif LOOSE.fullmatch(path) and path not in names:
            yield code


def absent_modules(text: str) -> Iterator[str]:
    """Find the modules that a text runs with `python -m` and that do not exist."""
    for module in MODULE.findall(text):
        path = ROOT.joinpath(*module.split("."))
        if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file():
            yield module


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_everything_that_a_document_names_exists(file: Path) -> None:
    assert list(broken_links(file)) == []
    assert list(absent_paths(file)) == []
    assert list(absent_modules(file.read_text(encoding="utf-8"))) == []


def test_modules_that_make_runs_exist() -> None:
    assert list(absent_modules((ROOT / "Makefile").read_text(encoding="utf-8"))) == []


def test_images_are_small() -> None:
    links = ((file.parent, link) for file in DOCUMENTS for link in LINK.findall(prose(file)))
    images = {
        (folder / link).resolve() for folder, link in links if link.endswith((".jpg", ".png"))
    }
    assert images
    assert sum(image.stat().st_size for image in images) < 300_000


def test_documents_are_found() -> None:
    found = {str(file.relative_to(ROOT)) for file in DOCUMENTS}
    assert {"README.md", "jobs/README.md", "pipeline/README.md", "model/ops/README.md"} <= found
