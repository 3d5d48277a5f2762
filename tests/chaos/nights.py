"""Several nights over a lake that grows and changes, each of them killed or ended by a budget."""

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jobs.accounting.budget import PUBLISH_SECONDS
from jobs.label.budget_options import EXIT_ENDED
from tests.chaos.compare import read_tables
from tests.chaos.harness import Lab
from tests.chaos.lake import encoded_image, write_images, write_tar

NIGHTS = 4
Disturb = Callable[[str, str], None]  # of a command's name and its INPUT


def change_lake(lake: Path, night: int) -> None:
    """New images, a replaced one, a removed one, and now and then a new or a longer tar."""
    write_images(lake, range(10 * night, 10 * night + 8))
    if night > 1:
        replaced = lake / f"{10 * (night - 1):04}.png"
        replaced.write_bytes(encoded_image(1000 + night))
        os.utime(replaced, (10**9 + night, 10**9 + night))
    if night == 3:
        (lake / "0011.png").unlink()
    if night in (2, 4):
        write_tar(lake / "a.tar", range(500, 501 + night))


def commands_of(night: int) -> list[str]:
    """What is run in a night, besides labelling: the tables are merged, or all is done anew."""
    return {2: ["label", "compact"], 3: ["label", "relabel"]}.get(night, ["label"])


def make_nights(lab: Lab, lake: Path, disturb: Disturb | None) -> None:
    """Run all nights. Each command is disturbed, if that is wanted, and run again."""
    for night in range(1, NIGHTS + 1):
        change_lake(lake, night)
        for name in commands_of(night):
            source = str(lake) if name != "compact" else ""
            if disturb is not None:
                disturb(name, source)
                lab.recover(name, source=source)
            else:
                lab.run(name, source=source)


def kill_one(lab: Lab, name: str, source: str, chance: random.Random) -> None:
    """Kill a command at one of its steps, or at any time."""
    lab.wait_for_lease()
    at = f"{chance.randint(1, 36)} kill" if chance.random() < 0.8 else ""
    command = lab.start(name, source=source, at=at)
    if not at:
        time.sleep(chance.uniform(0.1, 25.0 if lab.fault.ray else 3.0))
        command.signal(signal.SIGKILL)
    assert lab.finish(command) in (0, -signal.SIGKILL), command.said()


def end_one(lab: Lab, name: str, source: str, chance: random.Random) -> None:
    """Let a budget end a command of `label`. Half of these are also killed at one of their steps.

    A budget that has no time for the first block refuses the run.
    """
    if name != "label":  # `compact` has no budget, and `--relabel` is refused with one
        kill_one(lab, name, source, chance)
        return
    lab.wait_for_lease()
    seconds = PUBLISH_SECONDS + chance.uniform(*((15.0, 40.0) if lab.fault.ray else (3.0, 8.0)))
    at = f"{chance.randint(10, 40)} kill" if chance.random() < 0.5 else ""
    words = ("--max-hours", f"{seconds / 3600:.6f}")
    command = lab.start(name, source=source, at=at, words=words)
    code = lab.finish(command)
    is_too_small = code == 2 and "is spent before the first block was done" in command.said()
    assert is_too_small or code in (0, EXIT_ENDED, -signal.SIGKILL), command.said()


def several_nights(lab: Lab, disturb: Callable[[Lab, str, str, random.Random], None]) -> None:
    """The tables of disturbed nights are those of the same nights that nothing disturbs."""
    lake, disturbed = lab.folder / "lake", lab.output
    lab.output = str(lab.folder / "calm")
    make_nights(lab, lake, None)
    expected = read_tables(lab.output, latest=True)
    for file in lake.iterdir():
        file.unlink()
    lab.output = disturbed
    chance = random.Random(lab.fault.parameter)
    make_nights(lab, lake, lambda name, source: disturb(lab, name, source, chance))
    lab.compare(expected, latest=True)
    lab.run("verify")
    lab.run("label", source=str(lake))
    lab.compare(expected, latest=True)
    lab.is_tidy()


KINDS: dict[str, Callable[[Lab], None]] = {
    "several nights with kills": partial(several_nights, disturb=kill_one),
    "several nights with budgets": partial(several_nights, disturb=end_one),
}
