"""An OUTPUT of three nightly runs, between which objects changed."""

from pathlib import Path

from tests.support.labelled import Labelled, write_run

LABELS = ("", "circle", "star")
NIGHTS = [f"2026010{night}T000000Z-aaaaaa" for night in (1, 2, 3)]
ARCHIVE = "file:///lake/a.tar"


def photo(name: str, boxes: int, etag: str = "1") -> Labelled:
    found = [(1 + k % 2, 0.9 - 0.1 * k, 10.0 * k, 5.0, 10.0 * k + 8, 30.0) for k in range(boxes)]
    return Labelled(f"file:///lake/{name}", found, etag=etag)


def member(key: str, boxes: int, etag: str = "1") -> Labelled:
    image = photo(key, boxes, etag)
    return Labelled(f"{ARCHIVE}#{key}", image.boxes, shard=ARCHIVE, uri=ARCHIVE, etag=etag)


def write_nights(folder: Path) -> str:
    """Write three runs: b.jpg changes, the archive changes and loses a member, and c.jpg fails."""
    first = [photo("a.jpg", 3), photo("b.jpg", 2), member("x", 1), member("y", 2)]
    second = [photo("b.jpg", 1, "2"), Labelled("file:///lake/c.jpg", status="undecodable")]
    third = [photo("d [1].jpg", 4), member("x", 3, "2")]
    for run_id, images in zip(NIGHTS, (first, second, third), strict=True):
        write_run(folder, images, LABELS, run_id)
    return str(folder)
