"""Which faults `make chaos` injects: the same ones for the same seed."""

import random
from collections.abc import Iterator, Mapping
from itertools import cycle, product

from tests.chaos.faulty_store import KINDS as WAYS
from tests.chaos.harness import DISK, S3, Fault
from tests.chaos.outputs import HARM, SPOILS
from tests.chaos.world import IMPORTED, LABELLED, WRITERS

PLACES = (DISK, S3)
SHARES = ("25%", "45%", "65%", "85%")  # of the steps of a command
DOCUMENTS = {  # patterns of files, and commands that read them
    "_runs/log/0*.json": ("label", "compact", "delete-labelled", "import"),
    "_runs/*/manifest-*.json": ("relabel", "compact-imported", "delete-imported"),
    "_runs/*/plan-*.parquet": ("label", "import"),
    "_runs/*/run.json": ("compact",),
}
STAGED = ("_staging/*/blocks/block-*", "_staging/*/plan.parquet")
UNAVAILABLE = ("lake/0002.png", "lake/0001.png", "lake/b.tar")  # of INPUT, of label-stored
BROKEN = (  # patterns of objects that fail, and the command that needs them
    ("label-stored", "/blocks/block-"),
    ("label", "log/0+1.json"),
    ("label", "_runs/lock.json"),
    ("relabel", "/part-00000-.*parquet"),
    ("import", "manifest-"),
    ("compact", "/detections/run=[^/]*/part-"),
    ("delete-labelled", "log/0+6.json"),
)
WITH_RAY = 3  # faults of each kind
RAY_SHARES = ("35%", "60%", "80%")
SPARE_SHARES = ("20%", "45%", "30%", "50%")


def plan(steps: Mapping[str, int], seed: int = 0) -> list[Fault]:
    """All faults; those without Ray first, and among them kinds in turn. `steps`: by command."""
    alone = [*_kills(steps), *_pauses(seed), *_stores(), *_outputs(), *_lakes()]
    random.Random(seed).shuffle(alone)
    return [*dict.fromkeys(alone), *dict.fromkeys(_with_ray())]


def writers() -> list[str]:
    return [*WRITERS[LABELLED], *WRITERS[IMPORTED]]


def _kills(steps: Mapping[str, int]) -> Iterator[Fault]:
    """Each change of OUTPUT, by each writer: behind a step is before the next."""
    for place, name in product(PLACES, writers()):
        for step in (1, *range(2, steps[name] + 1, 2)):
            yield Fault("killed at a step", place, name, parameter=str(step))
    for kind in ("SIGTERM", "Ctrl-C", "out of memory"):
        for name, share in zip(writers(), cycle(SHARES)):
            yield Fault(kind, DISK, name, parameter=share)
    for name, share in zip(writers(), cycle(("20%", "40%", "55%"))):
        yield Fault("killed again and again", DISK, name, parameter=share)
        yield Fault("killed at random", DISK, name, parameter=share)
        yield Fault("killed at random", S3, name, parameter=share)
    for number in range(4):
        yield Fault("several nights with kills", DISK, parameter=str(number))
        yield Fault("several nights with budgets", DISK, parameter=str(number))


def _pauses(seed: int) -> Iterator[Fault]:
    """All pairs of a writer and another that takes over; where it stands still is drawn."""
    chance = random.Random(seed)
    pairs = [
        pair
        for kind in (LABELLED, IMPORTED)
        for pair in product(WRITERS[kind], (*WRITERS[kind], *["import-b"] * (kind == IMPORTED)))
    ]
    for kind, place in (
        ("paused, taken over", DISK),
        ("cut off, taken over", S3),
        ("request arrives late", S3),
        ("killed, then another command", DISK),
    ):
        for name, heir in pairs:
            share = chance.randint(20, 95)
            yield Fault(kind, place, name, parameter=f"{share}% {heir}")
    for name in WRITERS[LABELLED] + WRITERS[IMPORTED]:  # between the check and the commit
        yield Fault(
            "paused, taken over", DISK, name, parameter=f"before create_whole.*/log/0*6 {name}"
        )
        yield Fault(
            "cut off, taken over", S3, name, parameter=f"before create_whole.*/log/0*6 {name}"
        )
        yield Fault(
            "two commands at once", DISK, name, parameter=f"{chance.randint(30, 80)}% {name}"
        )


def _stores() -> Iterator[Fault]:
    for way, name in product(WAYS, ("label-stored", "import", "compact")):
        yield Fault(f"store: {way} now and then", S3, name, parameter="1")
    for name, share in product(writers(), SHARES[::2]):
        yield Fault("store: lost answer of one change", S3, name, parameter=share)
    for kind, name in product(("store gone", "writes forbidden"), writers()):
        yield Fault(kind, S3, name, parameter="50%")
    for name, pattern in BROKEN:
        yield Fault("500 for one object", S3, name, parameter=pattern)
    for pattern in UNAVAILABLE:
        yield Fault("500 for one image", S3, "label-stored", parameter=pattern)
    for name in writers():
        yield Fault("stale listings", S3, name)
        yield Fault("stale listings after a kill", S3, name, parameter="60%")
    for name in ("label", "import", "compact"):
        yield Fault("store of a host that does not exist", S3, name)


def _outputs() -> Iterator[Fault]:
    spoils = cycle(SPOILS)
    for pattern, names in DOCUMENTS.items():
        for name in names:
            yield Fault("damaged document", DISK, name, parameter=f"{pattern} {next(spoils)}")
    for name, pattern in product(("compact", "relabel", "label"), ("images", "detections")):
        parameter = f"{pattern}/*/part-*.parquet {next(spoils)}"
        yield Fault("damaged table", DISK, name, parameter=parameter)
    for pattern, name in product(STAGED, ("label", "relabel")):
        yield Fault("damaged staging", DISK, name, parameter=f"{pattern} {next(spoils)}")
    for harm, name in product(HARM, ("label", "relabel", "compact")):
        yield Fault("hostile OUTPUT", DISK, name, parameter=harm)
    for name, share in zip(writers(), cycle(SHARES)):
        yield Fault("foreign files", DISK, name, parameter=share)
    for name, room in product(("label", "import", "compact"), ("4", "12")):
        yield Fault("disk of OUTPUT full", DISK, name, parameter=room)


def _lakes() -> Iterator[Fault]:
    for number in ("3", "7", "12"):
        yield Fault("harmful images", parameter=number)
    for share in RAY_SHARES:
        yield Fault("lake of links", parameter=share)
        yield Fault("precision changed midway", parameter=share)
    for number in ("1", "2", "3"):
        yield Fault("images changed midway", parameter=number)
        yield Fault("weights replaced midway", parameter=number)
        yield Fault("listed hosts that do not exist", parameter=number)


def _with_ray() -> Iterator[Fault]:
    """Three of each kind that concerns `label`."""
    for share, heir in zip(RAY_SHARES, ("label", "relabel", "delete-labelled"), strict=True):
        for kind in ("killed at a step", "SIGTERM", "Ctrl-C", "out of memory", "killed at random"):
            yield Fault(kind, DISK, "label", True, share)
        yield Fault("killed at a step", S3, "relabel", True, share)
        yield Fault("killed again and again", DISK, "label", True, share)
        yield Fault("paused, taken over", DISK, "label", True, f"{share} {heir}")
        yield Fault("cut off, taken over", S3, "label", True, f"{share} {heir}")
        yield Fault("request arrives late", S3, "label", True, f"{share} {heir}")
        yield Fault("killed, then another command", DISK, "label", True, f"{share} {heir}")
        yield Fault("two commands at once", DISK, "label", True, f"{share} {heir}")
        for way in WAYS:
            yield Fault(f"store: {way} now and then", S3, "label-stored", True, share)
        yield Fault("store: lost answer of one change", S3, "label", True, share)
        for kind in ("store gone", "writes forbidden", "stale listings after a kill"):
            yield Fault(kind, S3, "label", True, share)
    for pattern in UNAVAILABLE:
        yield Fault("500 for one image", S3, "label-stored", True, pattern)
    for name, (_, pattern) in zip(("label-stored",) * 3, BROKEN, strict=False):
        yield Fault("500 for one object", S3, name, True, pattern)
    for number in ("1", "2", "3"):
        yield Fault("stale listings", S3, "label", True, number)
        yield Fault("images changed midway", DISK, "label", True, number)
        yield Fault("weights replaced midway", DISK, "label", True, number)
        yield Fault("listed hosts that do not exist", DISK, "label", True, number)
        yield Fault("several nights with kills", DISK, "label", True, number)
        yield Fault("several nights with budgets", DISK, "label", True, number)
        yield Fault("harmful images", DISK, "label", True, str(4 * int(number)))
        for kind in ("detector killed", "preparer killed", "decoding process killed"):
            yield Fault(kind, DISK, "label", True, number)
        yield Fault("node taken away", DISK, "label", True, number)
        yield Fault("full disk for spilled objects", DISK, "label", True, number)
    for share in RAY_SHARES:
        yield Fault("lake of links", DISK, "label", True, share)
        yield Fault("precision changed midway", DISK, "label", True, share)
        yield Fault("foreign files", DISK, "label", True, share)
    for server in ("raylet", "gcs_server", "raylet again"):
        yield Fault("Ray's own servers killed", DISK, "label", True, server)
    for parameter in (f"{STAGED[0]} cut", f"{STAGED[0]} emptied", f"{STAGED[1]} cut"):
        yield Fault("damaged staging", DISK, "label", True, parameter)
    for name in ("label", "relabel", "label-stored"):
        yield Fault("store of a host that does not exist", S3, name, True)
    for name, pattern in zip(("label", "relabel", "label"), DOCUMENTS, strict=False):
        yield Fault("damaged document", DISK, name, True, f"{pattern} cut")
    for table in ("images", "detections"):
        yield Fault("damaged table", DISK, "relabel", True, f"{table}/*/part-*.parquet cut")
    yield Fault("damaged table", DISK, "label", True, "images/*/part-*.parquet cut")
    for harm in ("manifest leads out", "all staging is a link", "nested entry"):
        yield Fault("hostile OUTPUT", DISK, "label", True, harm)
    for room in ("4", "12", "20"):
        yield Fault("disk of OUTPUT full", DISK, "label", True, room)


def spares() -> Iterator[Fault]:
    """With Ray, for the kinds whose own may find nothing to disturb: when they end is chance."""
    for share in SPARE_SHARES:
        yield Fault("killed at random", DISK, "label", True, share)
        yield Fault("stale listings after a kill", S3, "label", True, share)
        yield Fault("precision changed midway", DISK, "label", True, share)
    for room in ("2", "6", "8", "10"):
        yield Fault("disk of OUTPUT full", DISK, "label", True, room)
