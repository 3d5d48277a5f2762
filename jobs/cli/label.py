"""`detr-batch label`: label every image under INPUT that OUTPUT has no labels of."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobs.cli.options import add_command
from jobs.cli.process import begin_startup, exit_at_sigterm
from jobs.label.log.lines import as_line
from jobs.label.options import LabelOptions

if TYPE_CHECKING:
    from jobs.label.notify.notifier import Notifier


def add(commands: Any) -> None:
    add_command(
        commands,
        "label",
        LabelOptions,
        _label,
        help="label every image under INPUT that OUTPUT does not hold yet",
        description="Label every image under INPUT that OUTPUT does not hold yet. Both are local "
        "paths or URLs (s3://bucket/prefix). The same command, run again, labels what is new; "
        "after a crash or Ctrl-C it finishes what was begun.",
        again="; the same command takes it up again",
        as_line=as_line,
    )


def _label(options: LabelOptions) -> int:
    from jobs.label.notify.notifier import Notifier

    notifier = Notifier(options, options.input, options.output, options.page)
    if options.dry_run or not notifier.has_receivers:
        return _run(options)
    exit_at_sigterm()
    return _tell_end(notifier, lambda: _run(options, notifier))


def _run(options: LabelOptions, notifier: "Notifier | None" = None) -> int:
    """Run the command. What is wrong with it is said before the seconds that the imports take."""
    from jobs.label.checks import checked

    options = checked(options)
    from jobs.label.label import label

    return label(options, begin_startup(), notifier)


def _tell_end(notifier: "Notifier", command: Callable[[], int]) -> int:
    """Run the command, and tell its receivers how it ended, in the words that its user sees."""
    from jobs.cli import EXIT_FAILED, exit_code_of, message_of
    from jobs.label.notify.announced_run import Ending
    from jobs.label.notify.notifier import one_line

    try:
        code = command()
    except Exception as error:
        notifier.end(Ending(exit_code_of(error), one_line(message_of(error))))
        raise
    except BaseException:  # Ctrl-C and SIGTERM
        notifier.end(Ending(EXIT_FAILED, "interrupted", interrupted=True))
        raise
    notifier.end(Ending(code))
    return code
