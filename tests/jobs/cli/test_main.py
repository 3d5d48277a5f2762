"""The command line as a shell sees it."""

import subprocess
import sys


def test_a_reader_that_stops_early_is_no_error() -> None:
    """As in `detr-batch models | head`."""
    code = "import sys; from jobs.cli import main; sys.exit(main(['models']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()
