"""One step of a bench of a GPU, as a process: `python -m jobs.bench.gpu.step NAME ...`."""

import argparse
import signal
import sys
from importlib import import_module
from pathlib import Path

from jobs.bench.gpu import STEPS
from jobs.bench.gpu.context import Context
from jobs.bench.gpu.environment import describe_environment
from jobs.bench.gpu.journal import END, ENVIRONMENT


def main() -> None:
    """Run the step's cases that are not in the journal yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--deadline", type=float, required=True, help="of time.monotonic()")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that temporary folders are removed
    context = Context(given.step, given.out, given.device, given.tiny, given.deadline)
    context.write("", ENVIRONMENT, **describe_environment(given.device), tiny=given.tiny)
    import_module(f"jobs.bench.gpu.{given.step}").run(context)
    context.write("", END)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
