"""Several nights over a lake that grows and changes, with a kill in each of them."""

import os
import random
import signal
import time
from pathlib import Path

from tests.chaos.compare import read_tables
from tests.chaos.harness import Lab
from tests.chaos.lake import encoded_image, write_images, write_tar

NIGHTS = 4


def change_lake(lake: Path, night: int) -> None:
    """New images, a replaced one, a removed one, and now and then a new or a longer tar."""
    write_images(lake, range(10 * night, 10 * night + 2))
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


def make_nights(lab: Lab, lake: Path, chance: random.Random | None) -> None:
    """Run all nights. With `chance`, each command is killed at some step, and run again."""
    for night in range(1, NIGHTS + 1):
        change_lake(lake, night)
        for name in commands_of(night):
            source = str(lake) if name != "compact" else ""
            if chance is not None:
                kill_one(lab, name, source, chance)
                lab.recover(name, source=source)
            else:
                lab.run(name, source=source)


def kill_one(lab: Lab, name: str, source: str, chance: random.Random) -> None:
    lab.wait_for_lease()
    at = f"{chance.randint(1, 36)} kill" if chance.random() < 0.8 else ""
    command = lab.start(name, source=source, at=at)
    if not at:
        time.sleep(chance.uniform(0.1, 25.0 if lab.fault.ray else 3.0))
        command.signal(signal.SIGKILL)
    assert lab.finish(command) in (0, -signal.SIGKILL), command.said()


def several_nights(lab: Lab) -> None:
    """The tables of disturbed nights are those of the same nights without a kill."""
    lake, disturbed = lab.folder / "lake", lab.output
    lab.output = str(lab.folder / "calm")
    make_nights(lab, lake, None)
    expected = read_tables(lab.output, latest=True)
    for file in lake.iterdir():
        file.unlink()
    lab.output = disturbed
    make_nights(lab, lake, random.Random(lab.fault.parameter))
    lab.compare(expected, latest=True)
    lab.run("verify")
    lab.run("label", source=str(lake))
    lab.compare(expected, latest=True)
    lab.is_tidy()


KINDS = {"several nights with kills": several_nights}
