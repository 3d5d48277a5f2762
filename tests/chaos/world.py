"""What all faults share: inputs, weights, prepared OUTPUTs, and what undisturbed commands leave.

There are three kinds of OUTPUT. One holds two nights of `label` over a lake that has grown since;
one holds two versions of a file of detections that `import` took; one is empty, and its lake lies
in the store. Each fault starts from a copy.
"""

import hashlib
import json
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs.output import paths
from jobs.output.catalog import read_catalog
from model.checkpoint import save_weights
from model.zoo import create_model
from pipeline.storage.files import open_location
from tests.chaos.commands import ALONE, Command, Forge
from tests.chaos.compare import Tables, digest, read_tables
from tests.chaos.lake import write_detections, write_night
from tests.support.s3_server import BUCKET

LABELLED, IMPORTED, STORED = "labelled", "imported", "stored"  # the kinds of OUTPUT
STORED_LAKE = f"s3://{BUCKET}/lake"
COMMAND_SECONDS = 180.0  # for one command without Ray; more is a hang
LEASE_SECONDS = 3.0
PATIENCE_SECONDS = 15.0  # with a store that fails


@dataclass(frozen=True)
class Undisturbed:
    """What commands do that nothing disturbs, one after the other, from a prepared OUTPUT."""

    codes: tuple[int, ...]
    tables: Tables
    latest: str  # digest of what the views `latest` show
    steps: list[str]  # of the last command


class World:
    """The inputs and prepared OUTPUTs below a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lake, self.found = folder / "lake", folder / "detections"
        self.weights = folder / "tiny.safetensors"

    def environment(self) -> dict[str, str]:
        return {
            "DETR_BATCH_LEASE_SECONDS": str(LEASE_SECONDS),
            "DETR_BATCH_STORE_PATIENCE": str(PATIENCE_SECONDS),
        }

    def prepare(self, forge: Forge) -> None:
        """Make all of it, by commands that nothing disturbs. What was made like this is kept."""
        self._make(forge)
        fs, path = open_location(STORED_LAKE, "INPUT")
        for file in sorted(self.lake.iterdir()):
            fs.put_file(str(file), f"{path}/{file.name}")

    def _make(self, forge: Forge) -> None:
        made_by = self._maker()
        if (self.folder / "ready").exists() and self._ready().get("made by") == made_by:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        save_weights(create_model("shapes-tiny", "random", training=True), self.weights, {})
        for night in (1, 2, 3):
            write_night(self.lake, night)
            if night < 3:
                self._run_to_end(forge, self.words("label", str(self.template(LABELLED))))
        for version in (1, 2, 3):
            write_detections(self.found, "a", version)
            if version < 3:
                self._run_to_end(forge, self.words("import", str(self.template(IMPORTED))))
        write_detections(self.found, "b", 1)
        self.template(STORED).mkdir()
        counts = {
            name: len(self.undisturbed(forge, kind, [name]).steps)
            for kind, names in WRITERS.items()
            for name in names
        }
        ready = {"made by": made_by, "steps": counts}
        (self.folder / "ready").write_text(json.dumps(ready))

    def _maker(self) -> str:
        """What the numbers and names of the world depend on: processor, torch, and the folder."""
        text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        processor = [line for line in text.splitlines() if line.startswith(("model name", "flags"))]
        words = "\n".join([*processor, torch.__version__, str(self.folder)])
        return hashlib.sha256(words.encode()).hexdigest()

    def _ready(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "ready").read_text())
        return found

    def steps(self) -> dict[str, int]:
        """How many steps each writer takes that nothing disturbs."""
        found: dict[str, int] = self._ready()["steps"]
        return found

    def _run_to_end(self, forge: Forge, words: list[str]) -> Command:
        command = forge.start(words, self.environment(), ALONE)
        code = command.wait(COMMAND_SECONDS)
        assert code == 0, f"{command}: exit code {code}: {command.said()}"
        return command

    def template(self, kind: str) -> Path:
        return self.folder / f"template-{kind}"

    def second_run(self, kind: str) -> str:
        """The newer one of the two runs of a template, which `delete` removes."""
        return read_catalog(str(self.template(kind))).state.counting_runs()[1]

    def words(self, name: str, output: str, source: str = "") -> list[str]:
        """The command line of a command: label, relabel, import, compact, delete-labelled, ..."""
        if name in ("label", "relabel", "label-stored"):
            lake = STORED_LAKE if name == "label-stored" else str(self.lake)
            words = ["label", source or lake, output, "--model", "shapes-tiny"]
            words += ["--weights", str(self.weights), "--score-threshold", "0.02", "--no-page"]
            words += ["--device", "cpu", "--batch-size", "1"]
            return words + ["--relabel"] * (name == "relabel")
        if name in ("import", "import-b"):
            file = "b" if name == "import-b" else "a"
            detections, truth = self.found / f"{file}.json", self.found / f"{file}-truth.json"
            words = ["import", str(detections), output, "--annotations", str(truth)]
            return [*words, "--model", "other"]
        if name in ("delete-labelled", "delete-imported"):
            run_id = self.second_run(name.removeprefix("delete-"))
            return ["runs", output, "--delete", run_id, "--yes"]
        if name == "verify":
            return ["runs", output, "--verify"]
        assert name in ("compact", "compact-imported")
        return ["compact", output]

    def undisturbed(self, forge: Forge, kind: str, names: Sequence[str]) -> Undisturbed:
        """What commands leave of a template of that kind; () leaves the template. Made once."""
        folder = self._calm(kind, names)
        if not folder.exists():
            self._run_undisturbed(forge, kind, names)
        found: Undisturbed = pickle.loads((folder / "result").read_bytes())
        return found

    def _calm(self, kind: str, names: Sequence[str]) -> Path:
        return self.folder / "undisturbed" / "-then-".join([kind, *names])

    def _run_undisturbed(self, forge: Forge, kind: str, names: Sequence[str]) -> None:
        """Run the last of these commands over what those before it left."""
        folder, temporary = self._calm(kind, names), forge.folder / f"calm-{len(names)}"
        output = temporary / "out"
        codes, steps = list[int](), list[str]()
        if names:
            codes += self.undisturbed(forge, kind, names[:-1]).codes
            shutil.copytree(self._calm(kind, names[:-1]) / "out", output)
            words = self.words(names[-1], str(output))
            command = forge.start(words, self.environment(), ALONE)
            codes.append(command.wait(COMMAND_SECONDS))
            assert codes[-1] in (0, 2), f"{command}: exit code {codes[-1]}: {command.said()}"
            steps = command.steps()
        else:
            shutil.copytree(self.template(kind), output)
        latest = digest(read_tables(str(output), latest=True))
        result = Undisturbed(tuple(codes), read_tables(str(output)), latest, steps)
        (temporary / "result").write_bytes(pickle.dumps(result))
        folder.parent.mkdir(exist_ok=True)
        try:
            temporary.rename(folder)
        except OSError:  # another fault was faster
            shutil.rmtree(temporary)


WRITERS = {
    LABELLED: ("label", "relabel", "compact", "delete-labelled"),
    IMPORTED: ("import", "compact-imported", "delete-imported"),
}


def files_below(output: Path) -> dict[str, bytes]:
    """All files of an OUTPUT on disk but its lock."""
    found = (path for path in output.rglob("*") if path.is_file())
    names = {str(path.relative_to(output)): path for path in found}
    return {name: path.read_bytes() for name, path in names.items() if name != paths.LOCK}
