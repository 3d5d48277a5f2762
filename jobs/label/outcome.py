"""What `label` prints at its end, and its exit code."""

import shlex
import sys

from jobs.accounting.counted import counted
from jobs.label.publication import Published
from pipeline.carry.values import MOST_VALUE_BYTES
from pipeline.schema import OK
from pipeline.storage.urls import mask

EXIT_OK, EXIT_TOO_MANY_FAILURES = 0, 3


def print_way_to_failures(output: str) -> None:
    """Print the query for the images that failed."""
    sql = "SELECT image_id, status, error FROM latest_images WHERE status <> 'ok'"
    print(f'what failed: detr-batch query {shlex.quote(mask(output))} "{sql}"', file=sys.stderr)


def print_outcome(output: str, published: Published, max_failed_fraction: float) -> int:
    """Print the result. Returns the exit code, which depends on the share of failed images."""
    images = published.images.total()
    failed = images - published.images[OK]
    if images:
        output = mask(output)
        print(
            f"{counted(images - failed, 'image')} labelled with {counted(published.boxes, 'box')}, "
            f"{failed} failed; "
            f"tables in {output}, and `detr-batch report {shlex.quote(output)}` says how fast and "
            "at what cost",
            file=sys.stderr,
        )
    if published.not_carried:
        print(
            f"{counted(published.not_carried, 'value')} could not be carried along and "
            f"{'is' if published.not_carried == 1 else 'are'} NULL: damaged, of another type, or "
            f"above {MOST_VALUE_BYTES >> 10} kB",
            file=sys.stderr,
        )
    if failed:
        print_way_to_failures(output)
    if failed < images and not published.boxes:
        print(
            "no box reached the threshold: look at some images, lower --score-threshold (with "
            "--relabel), or train the weights for longer if they are your own",
            file=sys.stderr,
        )
    if images and failed == images:
        print(
            f"{failed} of {counted(images, 'image')} failed: nothing was labelled; the rows in "
            f"{mask(output)}/images say why",
            file=sys.stderr,
        )
        return EXIT_TOO_MANY_FAILURES
    if failed > max_failed_fraction * images:
        print(
            f"{failed} of {counted(images, 'image')} failed, more than --max-failed-fraction "
            f"{max_failed_fraction} allows; their rows in {mask(output)}/images say why",
            file=sys.stderr,
        )
        return EXIT_TOO_MANY_FAILURES
    return EXIT_OK
