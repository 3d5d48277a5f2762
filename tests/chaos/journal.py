"""What came of each fault, as JSON lines, and the table made of them."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos.harness import Fault

HEAD = (
    "| fault | injected alone, with Ray | lost, twice, differ | again "
    "| seconds to recover: median, most |\n|---|---|---|---|---|"
)
Result = dict[str, Any]


class Journal:
    """The file of results. A fault that was injected again counts with its last result."""

    def __init__(self, path: Path):
        self.path = path
        self.results: dict[Fault, Result] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                result = json.loads(line)
                self.results[Fault(**result.pop("fault"))] = result

    def add(self, fault: Fault, result: Result) -> None:
        self.results[fault] = result = {**result, "day": f"{datetime.now(UTC):%Y-%m-%d}"}
        with self.path.open("a") as file:
            file.write(json.dumps({"fault": asdict(fault), **result}) + "\n")

    def is_done(self, fault: Fault) -> bool:
        """Whether a fault need not be injected again: it was, and nothing was wrong."""
        return fault in self.results and not is_bad(self.results[fault])

    def bad(self) -> list[tuple[Fault, Result]]:
        return [(fault, result) for fault, result in self.results.items() if is_bad(result)]

    def injected(self, kind: str) -> list[tuple[Fault, Result]]:
        """Those of a kind that found something to disturb."""
        return [
            (fault, result)
            for fault, result in self.results.items()
            if fault.kind == kind and "not_possible" not in result
        ]

    def count_with_ray(self, kind: str) -> int:
        return sum(fault.ray for fault, _ in self.injected(kind))

    def table(self) -> str:
        """A row for each kind, of the faults that were injected."""
        kinds = sorted({fault.kind for fault in self.results})
        rows = [row for kind in kinds if (row := self._row(kind))]
        return "\n".join([HEAD, *rows])

    def _row(self, kind: str) -> str:
        found = self.injected(kind)
        if not found:
            return ""
        with_ray = self.count_with_ray(kind)
        sums = [sum(result.get(name, 0) for _, result in found)
                for name in ("lost", "twice", "differing", "again")]  # fmt: skip
        seconds = [one for _, result in found for one in result.get("recovery", ())]
        recovery = f"{median(seconds):.0f}, {max(seconds):.0f}" if seconds else "-"
        differ = ", ".join(map(str, sums[:3]))
        return (
            f"| {kind} | {len(found) - with_ray}, {with_ray} | {differ} | {sums[3]} | {recovery} |"
        )


def is_bad(result: Result) -> bool:
    """Whether a command did not answer as it should, or anything was lost, twice or otherwise."""
    wrong = any(result.get(name) for name in ("lost", "twice", "differing"))
    return bool(wrong or "problem" in result)
