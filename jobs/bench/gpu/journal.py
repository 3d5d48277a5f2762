"""The journal of a GPU bench: one file of JSON lines, each written whole once it is known."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.storage.errors import CommandFailed

NAME = "gpu.jsonl"
Record = dict[str, Any]

# Kinds of records. Each has "step", "case" and "kind"; the other fields depend on its step.
ENVIRONMENT = "environment"  # environment of a step's process: the device, versions, the code
VALUE = "value"  # a rate of the device
VERDICT = "verdict"  # whether results are right
TIMING = "timing"  # the fields of jobs.bench.measure.Measurement
CHOICE = "choice"  # the fastest of several ways, for a table that the code reads
REFUSED = "refused"  # wrong results, which are not timed
LEFT_OUT = "left out"  # this machine lacks what the case needs
FAILED = "failed"  # the case, or its step, raised an error
BEGUN = "begun"  # identifies a case that ends its process
CRASHED = "crashed"  # the case ended its process
CUT = "cut"  # the step's time was over
END = "end"  # the step has no case left
# A case with one of these is finished; a later command on the same folder skips it.
FINAL = (VALUE, VERDICT, TIMING, CHOICE, REFUSED, LEFT_OUT, CRASHED)


class Journal:
    """The records in a folder. Several processes may add to them."""

    def __init__(self, folder: Path):
        self.path = folder / NAME

    def write(self, step: str, case: str, kind: str, **fields: Any) -> None:
        """Add a record.

        It is on disk when this returns, and a killed process leaves no partial record.
        """
        line = json.dumps({"step": step, "case": case, "kind": kind, **fields}) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())

    def records(self) -> Iterator[Record]:
        """Yield all records, first to last. CommandFailed names a line that is not a record."""
        if not self.path.exists():
            return
        for number, line in enumerate(self.path.read_text().splitlines(), start=1):
            try:
                record = json.loads(line)
                yield {"step": record["step"], "case": record["case"], **record}
            except (ValueError, KeyError, TypeError) as error:
                raise CommandFailed(
                    f"line {number} of {self.path} is no record of bench gpu: remove it, and the "
                    "case that it was of is measured again"
                ) from error

    def finished_cases(self, step: str) -> set[str]:
        """Return the cases of a step that need not run again."""
        return {r["case"] for r in self.records() if r["step"] == step and r["kind"] in FINAL}

    def case_under_way(self, step: str) -> str | None:
        """Return the case that a step began last, if it has not ended."""
        last = None
        for record in self.records():
            if record["step"] == step and record["case"]:
                last = record["case"] if record["kind"] == BEGUN else None
        return last

    def finished_steps(self) -> set[str]:
        """Return the steps that have no case left."""
        return {record["step"] for record in self.records() if record["kind"] == END}
