"""Several commands in one process without Ray: a start takes longer than a small `label`."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from jobs.output import paths

ROOT = Path(__file__).parents[2]


def run_commands(folder: Path, *commands: Sequence[str]) -> list[tuple[int, str]]:
    """Run commands one after the other in a folder; return exit code and stderr of each."""
    return _run(folder, commands, kill=False)


def kill_before_publishing(folder: Path, command: Sequence[str], output: Path) -> None:
    """Kill `label` when all is labelled and nothing is published, and free its lock of OUTPUT."""
    assert _run(folder, [command], kill=True) == []
    (output / paths.LOCK).unlink()


def _run(folder: Path, commands: Sequence[Sequence[str]], kill: bool) -> list[tuple[int, str]]:
    words = [sys.executable, "-m", "tests.support.alone_commands", json.dumps(commands)]
    done = subprocess.run(
        [*words, *(["kill"] if kill else [])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr
    found = map(json.loads, done.stdout.splitlines())
    return [(one["code"], one["said"]) for one in found]


def _main(commands: list[list[str]], kill: bool) -> None:
    import jobs.label.label
    from jobs.cli import main
    from tests.support.alone import label_without_ray

    label_without_ray(children=False)
    if kill:
        setattr(jobs.label.label, "publish_run", lambda *_: os.kill(os.getpid(), signal.SIGKILL))  # noqa: B010
    for words in commands:
        with redirect_stderr(io.StringIO()) as said, redirect_stdout(io.StringIO()):
            try:
                code = main(words)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
        print(json.dumps({"code": code, "said": said.getvalue()}))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]), sys.argv[2:] == ["kill"])
