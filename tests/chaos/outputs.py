"""OUTPUTs whose files are damaged, missing or foreign, or were written to do harm."""

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path

from jobs.output import paths
from jobs.output.documents import seal
from tests.chaos.harness import Lab, NotPossible
from tests.chaos.kills import step_of, take_up
from tests.chaos.world import files_below
from tests.support.damage import DAMAGES

SPOILS = (*DAMAGES, "missing")


def spoil(file: Path, how: str) -> None:
    """Damage a file, or delete it."""
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(DAMAGES[how](file.read_bytes()))


def target_of(lab: Lab) -> tuple[Path, str]:
    """The newest file that the parameter's pattern finds, and what happens to it."""
    pattern, _, how = lab.fault.parameter.partition(" ")
    found = sorted(Path(lab.output).glob(pattern))
    if not found:
        raise NotPossible(f"OUTPUT has no file like {pattern}")
    return found[-1], how


def damaged_document(lab: Lab) -> None:
    """A file that a command needs is named, and OUTPUT is left alone; put back, all is well."""
    name = lab.fault.command
    lab.place_template()
    file, how = target_of(lab)
    whole = file.read_bytes()
    spoil(file, how)
    before = files_below(Path(lab.output))
    command = lab.start(name)
    code = lab.finish(command)
    assert code == 1, f"{command}: exit code {code}: {command.said()}"
    lab.explains_itself(command, str(file.relative_to(lab.output)))
    assert files_below(Path(lab.output)) == before, "a command changed an OUTPUT that is damaged"
    file.write_bytes(whole)
    lab.recover(name)
    lab.settle(name)


def damaged_part(lab: Lab) -> None:
    """A damaged table is found by `runs --verify`, and `compact` does not spread the damage."""
    name = lab.fault.command
    lab.place_template()
    file, how = target_of(lab)
    whole = file.read_bytes()
    spoil(file, how)
    found = lab.run("verify", 1)
    assert file.name in found.said() and "Traceback" not in found.said(), found.said()
    command = lab.start(name)
    code = lab.finish(command)
    committed = lab.commits()
    if code:
        lab.explains_itself(command)
    elif "compact" in name:
        raise AssertionError(f"{command} merged a damaged table: {command.said()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(whole)
    order = [name] * (2 if committed else 1)
    lab.recover(name, lab.undisturbed(*order).codes[-1])
    lab.settle(*order)


def damaged_staging(lab: Lab) -> None:
    """A block of an unfinished run is computed again; without its plan or record it is refused."""
    name = lab.fault.command
    lab.place_template()
    command = lab.start(name, at=f"{step_of(lab, 'after write_whole.*images/run')} kill")
    assert lab.finish(command) == -signal.SIGKILL, command.said()
    file, how = target_of(lab)
    whole = file.read_bytes()
    spoil(file, how)
    if "block-" not in file.name:
        lab.wait_for_lease()
        refused = lab.start(name)
        code = lab.finish(refused)
        assert code == 1, f"{refused}: exit code {code}: {refused.said()}"
        lab.explains_itself(refused, str(file.relative_to(lab.output)))
        file.write_bytes(whole)
    lab.recover(name)
    lab.settle(name)


def rewrite_entry(lab: Lab, change: Callable[[dict[str, object]], None]) -> None:
    """Change the last entry of the log that adds a run, with a digest that fits."""
    for file in sorted(Path(lab.output, paths.LOG).glob("0*.json"), reverse=True):
        content = json.loads(file.read_text())["content"]
        if content["adds"]:
            change(content)
            file.write_bytes(seal(content))
            return


def leading_out_by_entry(lab: Lab, precious: Path) -> None:
    def change(content: dict[str, object]) -> None:
        added = dict(content["adds"][0])  # type: ignore[index]
        content["adds"] = [{**added, "manifest": f"../{precious.parent.name}/{precious.name}"}]

    rewrite_entry(lab, change)


def leading_out_by_manifest(lab: Lab, precious: Path) -> None:
    """Its files lie outside, so that `relabel`, `compact` and `delete` would delete those."""

    def change(content: dict[str, object]) -> None:
        added = dict(content["adds"][0])  # type: ignore[index]
        file = Path(lab.output, added["manifest"])
        document = json.loads(file.read_text())
        outside = f"images/../../{precious.parent.name}/{precious.name}"
        document["files"] = [{**one, "path": outside} for one in document["files"]]
        data = json.dumps(document).encode()
        file.write_bytes(data)
        content["adds"] = [{**added, "sha256": hashlib.sha256(data).hexdigest()}]

    rewrite_entry(lab, change)


def linked_staging(lab: Lab, precious: Path) -> None:
    """A folder of staging is a link to a folder elsewhere."""
    folder = Path(lab.output, paths.staging("20200101T000000Z-aaaaaa"))
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(precious.parent, target_is_directory=True)


def linked_staging_root(lab: Lab, precious: Path) -> None:
    """`_staging` itself is a link to a folder elsewhere."""
    folder = Path(lab.output, paths.STAGING)
    if folder.exists():
        folder.rmdir()
    folder.symlink_to(precious.parent.parent, target_is_directory=True)


def nested_entry(lab: Lab, precious: Path) -> None:
    Path(lab.output, paths.entry(5)).write_bytes(b"[" * 400_000)


def nested_lock(lab: Lab, precious: Path) -> None:
    Path(lab.output, paths.LOCK).write_bytes(b'{"token": ' * 100_000)


HARM: dict[str, Callable[[Lab, Path], None]] = {
    "entry leads out": leading_out_by_entry,
    "manifest leads out": leading_out_by_manifest,
    "staging is a link": linked_staging,
    "all staging is a link": linked_staging_root,
    "nested entry": nested_entry,
    "nested lock": nested_lock,
}


def hostile(lab: Lab) -> None:
    """An OUTPUT that was written to do harm: nothing outside is touched; the answer is a line."""
    name = lab.fault.command
    lab.place_template()
    precious = lab.folder / "elsewhere" / "precious.parquet"
    precious.parent.mkdir()
    precious.write_bytes(b"precious")
    HARM[lab.fault.parameter](lab, precious)
    command = lab.start(name)
    code = lab.finish(command)
    assert precious.read_bytes() == b"precious", "a file outside OUTPUT was changed"
    beside = sorted(path.name for path in precious.parent.iterdir())
    assert beside == [precious.name], f"files were written outside OUTPUT: {beside}"
    # A link is refused before any work, as it may be there on purpose.
    codes = (0, 1, 2) if "link" in lab.fault.parameter else (0, 1)
    assert code in codes, f"{command}: exit code {code}: {command.said()}"
    if code:
        lab.explains_itself(command)


FOREIGN = ("images/README", "detections/run=x/notes.txt", "_staging/notes", "_runs/log/notes.txt",
           "_runs/notes/run.json", "images/run=20200101T000000Z-aaaaaa/other.parquet",
           "_staging/.hidden", "notes [1]*?.txt")  # fmt: skip


def foreign_files(lab: Lab) -> None:
    """Files of others in OUTPUT stay there, and do not disturb."""
    name = lab.fault.command
    lab.place_template()
    lab.foreign.update(FOREIGN)
    for file in FOREIGN:
        path = Path(lab.output, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of somebody else")
    command = lab.start(name, at=f"{step_of(lab, lab.fault.parameter)} kill")
    lab.finish(command)
    take_up(lab, name)
    gone = [file for file in FOREIGN if not Path(lab.output, file).exists()]
    assert not gone, f"files of others were deleted: {gone}"


KINDS = {
    "damaged document": damaged_document,
    "damaged table": damaged_part,
    "damaged staging": damaged_staging,
    "hostile OUTPUT": hostile,
    "foreign files": foreign_files,
}
