"""Whether this process was created for the command that it runs: then both began together."""

import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.accounting.startup import Startup

# `main` sets it. It is False where another program, such as a test, calls `main` with arguments.
was_created_for_command = False


def exit_at_sigterm() -> None:
    """Let SIGTERM raise SystemExit, as it does once Ray has started: then the end can be told."""
    in_main = threading.current_thread() is threading.main_thread()
    if was_created_for_command and in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))


def begin_startup() -> "Startup":
    """Begin the start-up of a run: now, or when this process was created for it."""
    from jobs.accounting.startup import Startup, seconds_of_process  # would delay the start

    return Startup(seconds_of_process() if was_created_for_command else None)
