"""`make chaos`: every fault, many times; prints the table of the README.

python -m tests.chaos [SCENARIO ...]
"""

import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from tests.chaos.harness import Lab, Outcome
from tests.chaos.scenarios import CASES

HEAD = (
    "| fault | injected | images lost | images twice | images that differ | images computed again "
    "| seconds to recover (median, most) |\n|---|---|---|---|---|---|---|"
)


def as_row(outcome: Outcome) -> str:
    """A line of the table."""
    times = outcome.recovery
    recovery = f"{median(times):.0f}, {max(times):.0f}" if times else "-"
    numbers = (outcome.injected, outcome.lost, outcome.twice, outcome.differing, outcome.again)
    return f"| {outcome.fault} | {' | '.join(map(str, numbers))} | {recovery} |"


def main() -> int:
    """1 where a run did not end as it should, or anything was lost, twice or otherwise."""
    wanted = sys.argv[1:]
    cases = [case for case in CASES if not wanted or case.scenario.__name__ in wanted]
    rows, bad = [], 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder), images=48).cluster() as lab:
        for case in cases:
            try:
                outcome = case.scenario(lab, case.long)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                print(f"{case.scenario.__name__}: {error}", file=sys.stderr, flush=True)
                bad += 1
                continue
            rows.append(as_row(outcome))
            print(rows[-1], file=sys.stderr, flush=True)
            bad += outcome.lost + outcome.twice + outcome.differing
    print(f"{datetime.now(UTC):%Y-%m-%d}, {(time.monotonic() - began) / 60:.0f} minutes\n")
    print("\n".join([HEAD, *rows]))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
