"""All kinds of faults, by the name that plans, journals and the table give them."""

from collections.abc import Callable

from tests.chaos import kills, lakes, machines, nights, outputs, pauses, stores
from tests.chaos.harness import Lab

KINDS: dict[str, Callable[[Lab], None]] = {
    **kills.KINDS,
    **lakes.KINDS,
    **nights.KINDS,
    **pauses.KINDS,
    **stores.KINDS,
    **outputs.KINDS,
    **machines.KINDS,
}
