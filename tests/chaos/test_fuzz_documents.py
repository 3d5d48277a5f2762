"""Documents changed at random: each command answers, or says in one line what is wrong.

DETR_BATCH_FUZZ_CASES is how many of each kind. A failure names the kind and the seed, which
`python -m tests.chaos.fuzzed_documents KIND SEED 1 FOLDER` repeats.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.fuzzed_documents import FUZZERS
from tests.support.parameters import slow_but

ROOT = Path(__file__).parents[2]
CASES = int(os.environ.get("DETR_BATCH_FUZZ_CASES", "40")) // 4
SECONDS_EACH = 5  # an import waits half a second for its lock
MOST_MEGABYTES = 600  # 200 are there once the command line is loaded; hostile documents add little


@pytest.mark.parametrize("kind", slow_but(["record"], FUZZERS))
def test_changed_documents_end_in_an_answer_or_a_line(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos.fuzzed_documents", kind, "0", str(CASES)]
    found = subprocess.run(
        [*command, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60 + SECONDS_EACH * CASES,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert int(found.stdout) < MOST_MEGABYTES
