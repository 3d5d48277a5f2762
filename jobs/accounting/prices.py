"""Prices of machines, from the dated table `infra/prices.yaml`.

The table has USD per machine-hour of Linux in one region, with the source and the day on which the
source was read. The spot price is the median over the zones of the region. Add entries for other
machines to the table, or give a price with --usd-per-hour.
"""

import re
from dataclasses import dataclass
from functools import cache

from pipeline.storage.errors import InputError

# Reports compare the cost of labelling 1,000 images with this figure.
REFERENCE_USD_PER_1000 = 0.047


@dataclass(frozen=True)
class Machine:
    """An entry of the table. Prices are in USD an hour."""

    instance_type: str
    cpus: int
    devices: str  # "1 x L4", or "none (8 CPUs)"
    region: str
    on_demand: float
    spot: float
    read_on: str
    source: str

    @property
    def accelerators(self) -> tuple[int, str]:
        """Number and kind of the accelerators; (0, "") for a machine without any."""
        found = re.fullmatch(r"(\d+) x (.+)", self.devices)
        return (int(found[1]), found[2]) if found else (0, "")


@cache
def machines() -> dict[str, Machine]:
    """The table, by instance type."""
    from importlib.resources import files  # most commands do not need it

    import yaml

    readings = yaml.safe_load((files("infra") / "prices.yaml").read_text(encoding="utf-8"))
    return {
        name: Machine(
            instance_type=name,
            cpus=prices["cpus"],
            devices=prices["devices"],
            region=reading["region"],
            on_demand=prices["on_demand"],
            spot=prices["spot"],
            read_on=str(reading["read_on"]),
            source=reading["source"],
        )
        for reading in readings
        for name, prices in reading["machines"].items()
    }


def machine(instance_type: str, option: str = "--instance-type") -> Machine:
    """Look up an entry of the table. The InputError for an unknown machine lists the known ones."""
    if instance_type not in machines():
        raise InputError(
            f"no price of {option} {instance_type}: the table has {', '.join(machines())}; give "
            "--usd-per-hour for another"
        )
    return machines()[instance_type]


def as_text() -> str:
    """The table as text."""
    lines = [f"{'machine':<14} {'accelerators':<16} {'on demand':>10} {'spot':>8}  region, read on"]
    lines += [
        f"{m.instance_type:<14} {m.devices:<16} {m.on_demand:>10.4f} {m.spot:>8.4f}  "
        f"{m.region}, {m.read_on}"
        for m in machines().values()
    ]
    sources = sorted({m.source for m in machines().values()})
    return "\n".join([*lines, "USD an hour; spot: median over the region's zones", *sources])
