"""Several commands in one process without Ray: a start takes longer than a small `label`."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Before these words, the run is interrupted when all is labelled and nothing is published.
INTERRUPTED = "interrupted"


def run_commands(folder: Path, *commands: Sequence[str]) -> list[tuple[int, str]]:
    """Run commands one after the other in a folder; return exit code and stderr of each."""
    words = [sys.executable, "-m", "tests.support.alone_commands", json.dumps(commands)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words, cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [(one["code"], one["said"]) for one in json.loads(done.stdout.splitlines()[-1])]


def _main(commands: list[list[str]]) -> None:
    import io
    from contextlib import redirect_stderr, redirect_stdout

    import jobs.label.label
    from jobs.cli import main
    from tests.support.alone import label_without_ray

    label_without_ray(children=False)
    publish_run = jobs.label.label.publish_run

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    results = []
    for words in commands:
        is_interrupted = words[0] == INTERRUPTED
        jobs.label.label.publish_run = interrupt if is_interrupted else publish_run  # type: ignore[assignment]
        with redirect_stderr(io.StringIO()) as said, redirect_stdout(io.StringIO()):
            try:
                code = main(words[is_interrupted:])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
        results.append({"code": code, "said": said.getvalue()})
    print(json.dumps(results))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
