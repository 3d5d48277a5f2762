"""`detr-batch models` and `prices`: print the named models, and the table of prices."""

from dataclasses import dataclass
from typing import Any

from jobs.cli.options import add_command


@dataclass(frozen=True)
class NoOptions:
    pass


def add(commands: Any) -> None:
    add_command(commands, "models", NoOptions, _models, help="the named models")
    add_command(
        commands,
        "prices",
        NoOptions,
        _prices,
        help="what machines cost an hour, for --instance-type",
    )


def _models(_: NoOptions) -> int:
    from model.config import FasterRcnnConfig
    from model.faster_rcnn import build as build_faster_rcnn
    from model.zoo import MODELS, PACKAGED, build

    for named in MODELS.values():
        config = named.config()
        net = build_faster_rcnn(config) if isinstance(config, FasterRcnnConfig) else build(config)
        millions = sum(p.numel() for p in net.parameters()) / 1e6
        size = f"{millions:5.1f} M parameters {named.gmacs:6.1f} GMACs"
        weights = "packaged" if named.weights == str(PACKAGED) else named.weights
        print(f"{named.name:<42} {size}  weights: {weights}")
    return 0


def _prices(_: NoOptions) -> int:
    from jobs.accounting.prices import as_text

    print(as_text())
    return 0
