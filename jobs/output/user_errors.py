"""What users get wrong about an OUTPUT: its place, and the ids of its runs."""

import os
from difflib import get_close_matches

from fsspec import AbstractFileSystem

from jobs.output.catalog import read_catalog
from jobs.output.manifest import Manifest
from jobs.output.paths import RUNS, STAGING, document
from pipeline.storage.errors import InputError
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.files import join, open_location
from pipeline.storage.urls import mask

LOOKED_AT = 100  # most folders that may be an OUTPUT
NAMED = 3  # most of them, or of run ids, that an error names
ABOVE = 3  # an OUTPUT is at most so many folders above its files


def no_finished_run(output: str) -> InputError:
    """The error for an OUTPUT without a run that counts. It says what lies there instead."""
    return InputError(f"{mask(output)} holds no finished run: {_describe_place(output)}")


def refuse_no_output(output: str) -> None:
    """Raise InputError for a place where no command has begun to write an OUTPUT."""
    fs, path = open_location(output, "OUTPUT")
    with explain_errors("OUTPUT", output):
        if any(fs.exists(f"{path}/{name}") for name in (RUNS, STAGING)):
            return
    raise no_finished_run(output)


def _describe_place(output: str) -> str:
    fs, path = open_location(output, "OUTPUT")
    with explain_errors("OUTPUT", output):
        if not fs.exists(path):
            return "there is nothing; check the spelling, or `detr-batch label` makes one"
        if not fs.isdir(path):
            return "it is a file; give OUTPUT, the folder that `detr-batch label` wrote"
        if fs.exists(f"{path}/{STAGING}") and fs.find(f"{path}/{STAGING}"):
            return (
                "its run is under way, or was cut off; then the same `detr-batch label` again "
                "finishes it"
            )
        if fs.exists(f"{path}/{RUNS}"):
            if read_catalog(output).state.runs:
                return "all its runs were deleted; `detr-batch label` makes another"
            return (
                "no run has finished yet; the same `detr-batch label` again makes one (give it "
                "more if a budget ended it)"
            )
        above = path
        for _ in range(ABOVE):
            above = os.path.dirname(above)
            if above and fs.exists(f"{above}/{RUNS}"):
                return (
                    f"it is a part of the OUTPUT {mask(_name_like(output, path, above))}: give that"
                )
        folders, others = _entries(fs, path)
        outputs = [name for name in folders[:LOOKED_AT] if fs.exists(f"{path}/{name}/{RUNS}")]
    if outputs:
        return "did you mean " + " or ".join(mask(join(output, n)) for n in outputs[:NAMED]) + "?"
    if others:
        return (
            f"it holds other files, such as {others[0]}; give OUTPUT, which `detr-batch label` "
            "wrote, and not its INPUT"
        )
    return "`detr-batch label` makes one"


def _name_like(output: str, path: str, above: str) -> str:
    """The place `above` a path, written as the user wrote the path where that is possible."""
    below = path[len(above) :]
    given = output.rstrip("/")
    return given.removesuffix(below) if given.endswith(below) and given != below else above


def _entries(fs: AbstractFileSystem, path: str) -> tuple[list[str], list[str]]:
    """The names of the folders, and of the files, that lie directly at a path."""
    folders: list[str] = []
    files: list[str] = []
    for entry in fs.ls(path, detail=True):
        name = os.path.basename(entry["name"].rstrip("/"))
        (folders if entry["type"] == "directory" else files).append(name)
    return sorted(folders), sorted(files)


def unusable_run(output: str, run_id: str, option: str = "") -> InputError:
    """The error for the id of a run that does not count, which `option` gave."""
    catalog = read_catalog(output)
    counting, labelling = catalog.committed_runs(), catalog.labelling_runs()
    if any(run["run_id"] == run_id for run in labelling):
        return InputError(
            f"`compact` merged the tables of run {run_id} into {_merged(counting)}; "
            f"`detr-batch report --run {run_id}` still prints its figures, and its page stays in "
            f"{mask(join(output, document(run_id, 'report.html')))}"
        )
    known = sorted({run["run_id"] for run in (*counting, *labelling)})
    if not known:
        return no_finished_run(output)
    close = [one for one in known if one.startswith(run_id)] if run_id else []
    close = close or get_close_matches(run_id, known, NAMED)
    hint = f"its newest are {', '.join(known[-5:])}"
    if close:
        hint = f"did you mean {' or '.join(close[:NAMED])}? {hint}"
    place = mask(output)
    if option:
        return InputError(f"{option} {run_id}: {place} has no such finished run; {hint}")
    return InputError(f"{place} has no finished run {run_id}; {hint}")


def _merged(counting: list[Manifest]) -> str:
    made = [run["run_id"] for run in counting if run["compacts"]]
    return f"run {made[0]}" if len(made) == 1 else f"one of the runs {', '.join(made)}"
