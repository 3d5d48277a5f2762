"""What machines cost: `infra/prices.csv`, a dated table, or a price that the user gives.

A row holds USD per machine-hour of Linux in one region, as its source had it on the day it was
read; the spot price is the median over the region's zones. Add rows for other machines.
"""

import csv
from dataclasses import dataclass
from importlib.resources import files

from pipeline.storage import InputError

# What labelling 1,000 images is compared with.
REFERENCE_USD_PER_1000 = 0.047


@dataclass(frozen=True)
class Price:
    """USD an hour of one machine, and where the figure is from."""

    usd_per_hour: float
    basis: str


def price_of(instance_type: str, spot: bool) -> Price:
    """The table's price of a machine; InputError with the machines it has."""
    with (files("infra") / "prices.csv").open(encoding="utf-8") as file:
        rows = {row["instance_type"]: row for row in csv.DictReader(file)}
    if instance_type not in rows:
        raise InputError(
            f"no price of --instance-type {instance_type}: the table has {', '.join(rows)}; give "
            "--usd-per-hour for another"
        )
    row = rows[instance_type]
    market = "spot" if spot else "on demand"
    price = float(row["spot" if spot else "on_demand"])
    return Price(price, f"{instance_type} {market} in {row['region']}, read on {row['read_on']}")
