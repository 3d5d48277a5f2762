"""The surroundings of one fault: its OUTPUT, commands and store, and what must hold after it."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree
from typing import Any

from jobs.label.log.lines import without_time
from jobs.output import paths
from jobs.output.catalog import read_catalog
from jobs.output.log import read_entries
from jobs.output.store import OutputStore
from pipeline.storage.files import join, list_files, open_location, remove_tree
from pipeline.storage.lock import lease_of_bytes
from tests.chaos.commands import ALONE, LOOK_SECONDS, RAY, Command, Forge
from tests.chaos.compare import Difference, Tables, difference, read_tables
from tests.chaos.faulty_store import FaultyStore
from tests.chaos.readers import Reader
from tests.chaos.world import (
    COMMAND_SECONDS,
    IMPORTED,
    LABELLED,
    STORED,
    Undisturbed,
    World,
)
from tests.support.s3_server import BUCKET

RAY_SECONDS = 300.0  # for one command with Ray; more is a hang
DISK, S3 = "disk", "s3"


@dataclass(frozen=True)
class Fault:
    """One disturbed command."""

    kind: str
    where: str = DISK  # of OUTPUT
    command: str = "label"
    ray: bool = False
    parameter: str = ""  # what else the function of the kind needs to know

    def __str__(self) -> str:
        how = "ray" if self.ray else "alone"
        return " ".join(filter(None, (self.kind, self.where, self.command, how, self.parameter)))

    @property
    def output_kind(self) -> str:
        """The kind of OUTPUT that its command writes."""
        if "stored" in self.command:
            return STORED
        return IMPORTED if "import" in self.command else LABELLED


@dataclass
class Outcome:
    """What a fault cost."""

    difference: Difference = field(default_factory=Difference)
    again: int = 0  # images of a run that were staged more than once
    recovery: list[float] = field(default_factory=list)  # seconds of the commands that took it up
    reads: int = 0  # of the reader beside it


class NotPossible(Exception):
    """This machine cannot make the fault happen, or it came too late to disturb anything."""


class Lab:
    """One fault, from a fresh copy of a prepared OUTPUT to the comparison."""

    def __init__(self, fault: Fault, world: World, folder: Path, forge: Forge):
        self.fault, self.world, self.folder, self.forge = fault, world, folder, forge
        # Of the S3 server, for readers and for commands of other hosts.
        self.endpoint = os.environ["AWS_ENDPOINT_URL"]
        self.outcome = Outcome()
        self.commands: list[Command] = []
        self.store: FaultyStore | None = None
        self.foreign: set[str] = set()  # files in OUTPUT that no command has written
        self.output = str(folder / "out")
        if fault.where == S3:
            self.output = f"s3://{BUCKET}/{folder.name}/out"

    # ---- OUTPUT

    def place_template(self) -> None:
        """Copy the prepared OUTPUT to where the fault wants it."""
        template = self.world.template(self.fault.output_kind)
        if self.fault.where == DISK:
            copytree(template, self.output)
        else:
            fs, path = open_location(self.output, "OUTPUT")
            for file in sorted(template.rglob("*")):
                if file.is_file():
                    fs.put_file(str(file), f"{path}/{file.relative_to(template)}")
        self.first_entry = read_catalog(self.output).state.number + 1

    def clean_up(self) -> None:
        """Delete what the fault wrote to the S3 server."""
        if self.fault.where == DISK:
            return
        fs, path = open_location(f"s3://{BUCKET}/{self.folder.name}", "OUTPUT")
        remove_tree(fs, path)

    def commits(self) -> int:
        """The number of commits since the template was placed."""
        store = OutputStore(self.output)
        entries = read_entries(store, self.first_entry, 0)
        return sum(entry.kind == "commit" for entry in entries)

    @contextmanager
    def proxy(self) -> Iterator[FaultyStore]:
        """A faulty store before the S3 server, which commands use unless they are `elsewhere`."""
        self.store = FaultyStore(self.endpoint)
        with self.store.running():
            try:
                yield self.store
            finally:
                self.store.release.set()
                self.store = None

    # ---- commands

    def start(
        self,
        name: str,
        at: str = "",
        source: str = "",
        elsewhere: bool = False,
        words: Sequence[str] = (),
        how: str = "",
        **environment: str,
    ) -> Command:
        """Start a command of the world over OUTPUT, with further `words`.

        `elsewhere`: on a host that nothing disturbs, which also has no Ray.
        """
        given = {**self.world.environment(), **environment}
        if self.store is not None and not elsewhere:
            given["AWS_ENDPOINT_URL"] = self.store.url
        line = [*self.world.words(name, self.output, source), *words]
        ray = self.fault.ray and line[0] == "label" and not elsewhere
        command = self.forge.start(line, given, how or (RAY if ray else ALONE), at)
        self.commands.append(command)
        return command

    def finish(self, command: Command, seconds: float = 0.0) -> int:
        """The exit code of a command, which may take at least `seconds`."""
        usual = RAY_SECONDS if self.fault.ray else COMMAND_SECONDS
        return command.wait(max(usual, seconds))

    def run(
        self, name: str, *codes: int, elsewhere: bool = False, source: str = "", how: str = ""
    ) -> Command:
        """Run a command to its end, which must have one of the exit codes (default: 0)."""
        self.wait_for_lease()
        command = self.start(name, elsewhere=elsewhere, source=source, how=how)
        code = self.finish(command)
        assert code in (codes or (0,)), f"{command}: exit code {code}: {command.said()}"
        return command

    def recover(self, name: str, *codes: int, source: str = "") -> Command:
        """Run the same command again, after a fault."""
        self.wait_for_lease()
        began = time.monotonic()
        command = self.run(name, *codes, source=source)
        self.outcome.recovery.append(time.monotonic() - began)
        return command

    def wait_for_lease(self) -> None:
        """Until the lease of a command that was killed or stands still has ended."""
        fs, path = open_location(join(self.output, paths.LOCK), "OUTPUT")
        try:
            lease = lease_of_bytes(fs.cat_file(path))
        except FileNotFoundError:
            return
        if lease is not None:
            time.sleep(max(0.0, min(lease.expires_at - time.time(), lease.lease_seconds)) + 0.1)

    def until(self, happened: Callable[[], object], command: Command) -> bool:
        """Wait for it; False if the command ended before."""
        deadline = time.monotonic() + RAY_SECONDS
        while not happened():
            if command.poll() is not None or time.monotonic() > deadline:
                return bool(happened())
            time.sleep(LOOK_SECONDS)
        return True

    def explains_itself(self, command: Command, *words: str) -> None:
        """Its last line is one clear error, which has one of the words if any are given."""
        said = command.said()
        last = said.strip().splitlines()[-1] if said.strip() else ""
        clear = without_time(last).startswith("detr-batch: ") and "Traceback" not in said
        clear = clear and "detr-batch: internal error" not in said
        assert clear and (not words or any(word in last for word in words)), f"{command}: {said}"

    # ---- what must hold

    @property
    def nightly(self) -> str:
        """The command that a schedule runs over this OUTPUT."""
        return {LABELLED: "label", IMPORTED: "import", STORED: "label-stored"}[
            self.fault.output_kind
        ]

    def undisturbed(self, *names: str) -> Undisturbed:
        return self.world.undisturbed(self.forge, self.fault.output_kind, names)

    @contextmanager
    def readers(self, *orders: Sequence[str]) -> Iterator[Reader]:
        """A reader, which may see only the states between commands in one of these orders."""
        followed = [[*order, self.nightly] for order in orders]
        followed += [[*order[:1], self.nightly] for order in orders]
        prefixes = {tuple(order[:n]) for order in followed for n in range(len(order) + 1)}
        allowed = {self.undisturbed(*names).latest: names for names in sorted(prefixes)}
        with Reader(self.output) as reader:
            yield reader
        self.outcome.reads += reader.seen.total()
        assert not reader.damaged, f"a reader was told: {reader.damaged[0]}"
        strange = reader.seen.keys() - allowed.keys()
        assert not strange, f"{len(strange)} times a reader saw what no command left"

    def settle(self, *order: str, night: bool = True) -> None:
        """Compare with what these commands leave if nothing disturbs them, then run a next night.

        That finds nothing new unless it does so without a fault too, and leaves nothing behind.
        """
        self.compare(self.undisturbed(*order).tables)
        self.run("verify")
        if not night:
            return
        again = [*order, self.nightly]
        self.run(self.nightly, *self.undisturbed(*again).codes[-1:], elsewhere=True)
        self.compare(self.undisturbed(*again).tables)
        self.is_tidy()
        labelling = [command for command in self.commands if command.words[0] == "label"]
        staged = [image for command in labelling for image in command.staged()]
        self.outcome.again = len(staged) - len(set(staged))

    def compare(self, expected: Tables, latest: bool = False) -> None:
        """Add up how the tables differ, or those of the views `latest`."""
        found = difference(read_tables(self.output, latest), expected)
        total = self.outcome.difference
        total.lost = max(total.lost, found.lost)
        total.twice = max(total.twice, found.twice)
        total.differing = max(total.differing, found.differing)

    def is_tidy(self) -> None:
        """OUTPUT has no staging, and no table that no run has."""
        fs, path = open_location(self.output, "OUTPUT")
        names = {name[len(path.rstrip("/")) + 1 :] for name in list_files(fs, path)}
        runs = read_catalog(self.output).committed_runs()
        counting = {file["path"] for run in runs for file in run["files"]}
        left = {name for name in names if name.startswith(paths.STAGING)}
        left |= {name for name in names if paths.run_and_token_of_part(name)} - counting
        left -= self.foreign
        assert not left, f"left behind: {sorted(left)[:4]}"

    def result(self) -> dict[str, Any]:
        """For the journal."""
        told = self.outcome
        return {
            "lost": told.difference.lost,
            "twice": told.difference.twice,
            "differing": told.difference.differing,
            "again": told.again,
            "recovery": [round(seconds, 2) for seconds in told.recovery],
            "reads": told.reads,
        }


def point_to_store(credentials: str) -> None:
    """Let this process and those that it forks reach the S3 server."""
    os.environ.update(json.loads(credentials))
