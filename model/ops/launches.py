"""How Triton kernels are cut on each GPU: `launches.json`, filled by measurements.

The table is keyed by compute capability ("9.0"). The keys of the attention, which `detr-batch bench
launches` fills in, say how many queries there are and how corners are summed (ways.py). NORMS is
that of products that end in a norm (linear_norm.py). "any" serves what nobody measured: chosen from
registers and the width of loads, 16 bytes a thread.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from model.ops.ways import HALF

TABLE = Path(__file__).with_name("launches.json")
ANY = "any"
FEW, MANY = "few queries", "many queries"
MANY_FROM = 4096  # queries of all images; fewer are cut small, so that every processor has some
NORMS = "products that end in a norm"


@dataclass(frozen=True)
class Launch:
    """How a program is cut: queries or rows of one, and warps of it."""

    block: int
    warps: int


Launches = dict[str, Launch]  # by `launch_name`
CANDIDATES = tuple(
    Launch(block, warps)
    for block in (4, 8, 16, 32, 64)
    for warps in (1, 2, 4)
    if block >= 4 * warps
)
NORM_CANDIDATES = (Launch(64, 8), Launch(64, 4), Launch(128, 8))


def launch_name(case: str, corners: str) -> str:
    """The key of the launch for a case (FEW or MANY) and a way of ways.CORNERS."""
    return f"{case}, half corners" if corners == HALF else case


def read_table(path: Path = TABLE) -> dict[str, Launches]:
    """Launches by compute capability."""
    return {
        capability: {case: Launch(**numbers) for case, numbers in cases.items()}
        for capability, cases in json.loads(path.read_text()).items()
    }


def add_to_table(capability: str, launches: Launches, path: Path = TABLE) -> None:
    """Keep what was measured on a GPU of this capability in place of what the table had."""
    table = read_table(path) | {capability: launches}
    lines = [
        f" {json.dumps(name)}: "
        + json.dumps({case: asdict(launch) for case, launch in cases.items()})
        for name, cases in sorted(table.items(), key=lambda item: (item[0] != ANY, item[0]))
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


@cache
def _kept() -> dict[str, Launches]:
    return read_table()


def launch_of(queries: int, corners: str, capability: str) -> Launch:
    """The attention's launch for so many `queries`, of all images, on a GPU of this capability."""
    name = launch_name(FEW if queries < MANY_FROM else MANY, corners)
    return _launches_of(capability)[name]


def launch_of_products(capability: str) -> Launch:
    """The launch of products that end in a norm."""
    return _launches_of(capability)[NORMS]


def _launches_of(capability: str) -> Launches:
    table = _kept()
    return table[ANY] | table.get(capability, {})
