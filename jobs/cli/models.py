"""`detr-batch models` and `prices`: list or fetch the named models; the table of prices."""

from dataclasses import dataclass, field
from typing import Any

from jobs.cli.options import add_command
from pipeline.storage.errors import InputError


@dataclass(frozen=True)
class ModelsOptions:
    model: str | None = field(
        default=None,
        metadata={"positional": True, "help": "list the classes of this model, by their numbers"},
    )
    fetch: str | None = field(
        default=None,
        metadata={
            "metavar": "MODEL",
            "help": "fetch the weights of this model beforehand, into the folder "
            "$DETR_BATCH_WEIGHTS if that is set; 'all' fetches those of all",
        },
    )


@dataclass(frozen=True)
class NoOptions:
    pass


def add(commands: Any) -> None:
    add_command(
        commands,
        "models",
        ModelsOptions,
        _models,
        help="list the named models, or the classes of one; fetch weights",
    )
    add_command(
        commands,
        "prices",
        NoOptions,
        _prices,
        help="what machines cost an hour, for --instance-type",
    )


def _models(options: ModelsOptions) -> int:
    from model.named import MODELS, fetch, named_model

    if options.model is not None and options.fetch is not None:
        raise InputError("models lists the classes of MODEL, or takes --fetch MODEL: give one")
    if options.model is not None:
        names = enumerate(named_model(options.model).config().labels)
        print("\n".join(f"{number:>3}  {name}" for number, name in names if name))
        return 0
    if options.fetch is None:
        print("\n".join(_lines()))
        return 0
    for name in MODELS if options.fetch == "all" else [options.fetch]:
        print(f"{name}: {fetch(name)}", flush=True)
    return 0


def _lines() -> list[str]:
    """A line a model: family, parameters, operations, published AP, weights and their licence."""
    import torch

    from model.config import FasterRcnnConfig
    from model.faster_rcnn import build as build_faster_rcnn
    from model.named import MODELS
    from model.zoo import build

    lines = []
    net: torch.nn.Module
    for named in MODELS.values():
        config = named.config()
        with torch.device("meta"):  # nothing is drawn
            if isinstance(config, FasterRcnnConfig):
                net = build_faster_rcnn(config)
            else:
                net = build(config)
        millions = sum(parameter.numel() for parameter in net.parameters()) / 1e6
        size = f"{millions:5.1f} M parameters {named.gmacs:6.1f} GMACs"
        ap = "        " if named.ap is None else f"{named.ap:5.1f} AP"
        family = config.kind[0]
        lines.append(
            f"{named.name:<42} {family:<16} {size} {ap}  weights: {named.source} ({named.licence})"
        )
    return lines


def _prices(_: NoOptions) -> int:
    from jobs.accounting.prices import as_text

    print(as_text())
    return 0
