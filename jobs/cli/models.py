"""`detr-batch models` and `prices`: what the package knows."""

from typing import Any


def add(commands: Any) -> None:
    models = commands.add_parser("models", help="the named models")
    models.set_defaults(run=_models)
    prices = commands.add_parser("prices", help="what machines cost an hour, for --instance-type")
    prices.set_defaults(run=_prices)


def _models() -> int:
    from model.deformable_detr import DeformableDetr
    from model.zoo import MODELS, PACKAGED

    for named in MODELS.values():
        net = DeformableDetr(named.config())
        millions = sum(p.numel() for p in net.parameters()) / 1e6
        size = f"{millions:5.1f} M parameters {named.gmacs:6.1f} GMACs"
        weights = "packaged" if named.weights == str(PACKAGED) else named.weights
        print(f"{named.name:<42} {size}  weights: {weights}")
    return 0


def _prices() -> int:
    from jobs.accounting.prices import as_text

    print(as_text())
    return 0
