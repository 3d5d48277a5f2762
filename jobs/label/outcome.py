"""What `label` prints at its end, and its exit code."""

import shlex
from collections.abc import Sequence

from jobs.accounting.plurals import counted
from jobs.label.budget_options import EXIT_ENDED
from jobs.label.log.lines import print_line
from jobs.label.publication import Published
from jobs.output.manifest import Manifest
from jobs.report.text import list_examples
from pipeline.carry.values import MOST_VALUE_BYTES
from pipeline.schema import ALWAYS_RETRIED, OK, RETRIED_ON_REQUEST
from pipeline.storage.urls import mask

EXIT_OK, EXIT_TOO_MANY_FAILURES = 0, 3


def print_way_to_failures(output: str) -> None:
    """Print the query for the images that failed."""
    sql = "SELECT image_id, status, error FROM latest_images WHERE status <> 'ok'"
    print_line(f'what failed: detr-batch query {shlex.quote(mask(output))} "{sql}"')


def print_untried_failures(output: str, runs: Sequence[Manifest]) -> None:
    """Print how many images failed for reasons that --retry-failed does not try again."""
    from jobs.output.views import connect, explain_query_errors  # DuckDB would delay the start

    tried = (OK, *ALWAYS_RETRIED, *RETRIED_ON_REQUEST)
    if not any(run["images"].keys() - set(tried) for run in runs):
        return
    marks = ", ".join("?" * len(tried))
    sql = f"SELECT count(*) FROM latest_images WHERE status NOT IN ({marks})"
    with explain_query_errors(output), connect(output, runs) as tables:
        ((count,),) = tables.execute(sql, list(tried)).fetchall()
    if count:
        is_one = count == 1
        print_line(
            f"{counted(count, 'image')} that failed {'is' if is_one else 'are'} not tried again: "
            f"{'its reason lies' if is_one else 'their reasons lie'} in the image itself, and a "
            "new version of it is labelled"
        )


def print_outcome(
    output: str,
    published: Published,
    max_failed_fraction: float,
    budget_exit_code: int = EXIT_ENDED,
) -> int:
    """Print the result. Returns the exit code, which depends on the share of failed images.

    It is `budget_exit_code` if a budget ended the run.
    """
    images = published.images.total()
    failed = images - published.images[OK]
    if images:
        output = mask(output)
        print_line(
            f"{counted(images - failed, 'image')} labelled with {counted(published.boxes, 'box')}, "
            f"{failed} failed; "
            f"tables in {output}, and `detr-batch report {shlex.quote(output)}` says how fast and "
            "at what cost"
        )
    if published.ended is not None:
        _print_rest(published)
    if published.not_carried:
        print_line(
            f"{counted(published.not_carried, 'value')} could not be carried along and "
            f"{'is' if published.not_carried == 1 else 'are'} NULL: damaged, of another type, or "
            f"above {MOST_VALUE_BYTES >> 10} kB"
        )
    if refused := sum(report.get("refused_jpegs", 0) for report in published.reports):
        print_line(
            f"the decoder of the GPU refused {counted(refused, 'JPEG')}: decoded on CPUs instead"
        )
    if failed:
        print_way_to_failures(output)
    if failed < images and not published.boxes:
        print_line(
            "no box reached the threshold: look at some images, lower --score-threshold (with "
            "--relabel), or train the weights for longer if they are your own"
        )
    if images and failed == images:
        print_line(
            f"{failed} of {counted(images, 'image')} failed: nothing was labelled; the rows in "
            f"{mask(output)}/images say why"
        )
        return EXIT_TOO_MANY_FAILURES
    if failed > max_failed_fraction * images:
        print_line(
            f"{failed} of {counted(images, 'image')} failed, more than --max-failed-fraction "
            f"{max_failed_fraction} allows; their rows in {mask(output)}/images say why"
        )
        return EXIT_TOO_MANY_FAILURES
    return EXIT_OK if published.ended is None else budget_exit_code


def _print_rest(published: Published) -> None:
    """Print what a budget left for the next run."""
    kept = ""
    if published.kept:
        kept = (
            f"; {counted(published.kept, 'image')} of these "
            f"{'is' if published.kept == 1 else 'are'} labelled already, and published by a later "
            "run"
        )
    print_line(
        f"ended by {published.ended}: {counted(published.left, 'object')} of INPUT "
        f"{'is' if published.left == 1 else 'are'} left{kept}. "
        "The same command goes on"
    )
    if published.begun and not published.images:
        names = list_examples(published.begun, len(published.begun))
        them = "it" if len(published.begun) == 1 else "them"
        print_line(
            f"until {names} {'is' if them == 'it' else 'are'} labelled whole, nothing is "
            f"published, and nothing newer is labelled: give more, or move {them} out of INPUT. "
            f"Then the same command publishes what is labelled of {them}, and labels the rest"
        )
