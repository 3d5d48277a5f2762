"""What machines cost: `infra/prices.yaml`, a dated table, or a price that the user gives.

It holds USD per machine-hour of Linux in one region, as a source had it on the day it was read;
the spot price is the median over the region's zones. Add entries for other machines.
"""

from dataclasses import dataclass
from functools import cache

from pipeline.storage.errors import InputError

# What labelling 1,000 images is compared with.
REFERENCE_USD_PER_1000 = 0.047


@dataclass(frozen=True)
class Machine:
    """An entry of the table; prices in USD an hour."""

    instance_type: str
    devices: str
    region: str
    on_demand: float
    spot: float
    read_on: str
    source: str


@cache
def machines() -> dict[str, Machine]:
    """The table, by instance type."""
    from importlib.resources import files  # here, as most commands do without

    import yaml

    readings = yaml.safe_load((files("infra") / "prices.yaml").read_text(encoding="utf-8"))
    return {
        name: Machine(
            instance_type=name,
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
    """An entry of the table; InputError with the machines it has."""
    if instance_type not in machines():
        raise InputError(
            f"no price of {option} {instance_type}: the table has {', '.join(machines())}; give "
            "--usd-per-hour for another"
        )
    return machines()[instance_type]


def as_text() -> str:
    """The table for people."""
    lines = [f"{'machine':<14} {'accelerators':<16} {'on demand':>10} {'spot':>8}  region, read on"]
    lines += [
        f"{m.instance_type:<14} {m.devices:<16} {m.on_demand:>10.4f} {m.spot:>8.4f}  "
        f"{m.region}, {m.read_on}"
        for m in machines().values()
    ]
    sources = sorted({m.source for m in machines().values()})
    return "\n".join([*lines, "USD an hour; spot: median over the region's zones", *sources])
