"""`make chaos`: breaks commands on purpose, hundreds of times; prints the table of the README.

Without --fresh it goes on where it was ended: what was injected and went well is passed over.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from shutil import rmtree

from tests.chaos.injected import sitecustomize

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
sitecustomize.install()  # before all that it changes is imported

from tests.chaos.campaign import Campaign  # noqa: E402
from tests.chaos.harness import Fault  # noqa: E402
from tests.chaos.journal import Journal, Result, is_bad  # noqa: E402
from tests.chaos.plan import WITH_RAY, plan, spares  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/chaos"), help="for the journal")
    parser.add_argument("--fresh", action="store_true", help="forget what was injected before")
    parser.add_argument("--kinds", metavar="TEXT", help="only kinds whose names have this text")
    parser.add_argument("--commands", metavar="NAME", help="only disturb these: label,import,...")
    parser.add_argument("--limit", type=int, help="inject at most so many of each kind")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no fault after that")
    parser.add_argument("--jobs", type=int, default=2, help="faults without Ray at once")
    parser.add_argument("--seed", type=int, default=0)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--alone", action="store_true", help="only those without Ray")
    how.add_argument("--ray", action="store_true", help="only those with it")
    parser.add_argument("--table", action="store_true", help="print what the journal has, and end")
    return parser.parse_args()


def chosen(faults: list[Fault], given: argparse.Namespace) -> list[Fault]:
    """The faults that the arguments ask for."""
    counts: dict[tuple[str, bool], int] = {}
    found = []
    for fault in faults:
        counted = counts.get((fault.kind, fault.ray), 0)
        if (
            (given.kinds and given.kinds not in fault.kind)
            or (given.commands and fault.command not in given.commands.split(","))
            or (given.alone and fault.ray)
            or (given.ray and not fault.ray)
            or (given.limit is not None and counted >= given.limit)
        ):
            continue
        counts[fault.kind, fault.ray] = counted + 1
        found.append(fault)
    return found


def add(journal: Journal, fault: Fault, result: Result) -> None:
    """Write down what came of a fault, and say so."""
    journal.add(fault, result)
    sign = "WRONG" if is_bad(result) else "-" if "not_possible" in result else "ok"
    print(f"{sign:<5} {fault} {result}", file=sys.stderr, flush=True)


def main() -> int:
    """1 if a command did not answer as it should, or anything was lost, twice or otherwise."""
    given = arguments()
    if given.fresh:
        rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True, exist_ok=True)
    folder = given.folder.resolve()
    journal = Journal(folder / "journal.jsonl")
    until = time.time() + 60 * given.minutes
    if not given.table:
        with Campaign(folder, given.jobs).services() as campaign:
            campaign.prepare()
            faults = chosen(plan(campaign.world.steps(), given.seed), given)
            left = [fault for fault in faults if not journal.is_done(fault)]
            print(f"{len(left)} of {len(faults)} faults are left", file=sys.stderr, flush=True)
            for injected in campaign.inject(left, until):
                add(journal, *injected)
            for fault in chosen(list(spares()), given) if given.limit is None else ():
                if not journal.is_done(fault) and journal.count_with_ray(fault.kind) < WITH_RAY:
                    for injected in campaign.inject([fault], until):
                        add(journal, *injected)
    print(journal.table())
    for fault, result in journal.bad():
        print(f"\n{fault}\n{result}")
    return int(bool(journal.bad()))


if __name__ == "__main__":
    sys.exit(main())
