"""Whether a saved state of a training is one that a training can go on from.

torch loads what has the right names, whatever it holds, and fails steps later.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch

from jobs.train.options import DATA

# What AdamW and the scheduler cannot go on without. Other versions of torch save other fields
# beside these, and fill in those that are absent.
OPTIMIZER_FIELDS = ("params", "lr", "initial_lr", "betas", "eps", "weight_decay")
SCHEDULER_FIELDS = ("base_lrs", "last_epoch")


def check_header(saved: Any) -> None:
    """ValueError if the fields that say what was trained are not of their types."""
    if not isinstance(saved, dict) or not {"model", "step"} <= saved.keys():
        raise ValueError("it is no state of a training")
    labels, step = saved.get("labels", []), saved["step"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError("its labels are no list of names")
    if type(step) is not int or step < 0:
        raise ValueError("its step is no number of steps")
    data = saved.get("data", {})
    if not isinstance(data, dict) or not data.keys() <= set(DATA):
        raise ValueError("its data set is none")
    if not all(isinstance(path, str) for path in data.values()):
        raise ValueError("its data set has no paths")
    for name in ("model_name", "weights", "images"):
        if not isinstance(saved.get(name, ""), str):
            raise ValueError(f"its {name} is no text")


def check_model(saved: Mapping[str, torch.Tensor]) -> None:
    """ValueError if a weight, of any shape, is not finite. torch checks their names and shapes."""
    for name, weight in saved.items():
        if not weight.isfinite().all():
            raise ValueError(f"its weight {name} is not finite")


def check_optimizer(saved: Any, own: torch.optim.Optimizer) -> None:
    """ValueError if `saved` is not of the kind of `own.state_dict()`."""
    expected = own.state_dict()
    _check_alike("optimizer", saved, expected, ("state", "param_groups"))
    for group, fields in zip(saved["param_groups"], expected["param_groups"], strict=True):
        _check_alike("optimizer", group, fields, OPTIMIZER_FIELDS)
        if group["params"] != fields["params"]:
            raise ValueError("its optimizer is of other parameters")
    parameters = [one for group in own.param_groups for one in group["params"]]
    for number, state in saved["state"].items():
        shape = parameters[number].shape
        for name in ("exp_avg", "exp_avg_sq"):
            mean = state[name]
            if mean.shape != shape or not mean.is_floating_point() or not mean.isfinite().all():
                raise ValueError(f"its optimizer has no usable {name} of parameter {number}")
        if not (isfinite(steps := float(state["step"])) and steps >= 0):
            raise ValueError(f"its optimizer has no number of steps of parameter {number}")


def check_scheduler(saved: Any, own: torch.optim.lr_scheduler.LRScheduler) -> None:
    """ValueError if `saved` is not of the kind of `own.state_dict()`."""
    _check_alike("scheduler", saved, own.state_dict(), SCHEDULER_FIELDS)


def _check_alike(what: str, saved: Any, own: Any, needed: Sequence[str] = ()) -> None:
    """ValueError if a value is of another type or length than `own`, or a number is not finite.

    Of mappings, the fields `needed` must be there, and those that both have are compared.
    """
    if isinstance(own, Mapping):
        is_alike = isinstance(saved, Mapping) and all(name in saved for name in needed)
        pairs = [(saved[name], own[name]) for name in own if name in saved] if is_alike else []
    elif isinstance(own, list | tuple):
        is_alike = isinstance(saved, list | tuple) and len(saved) == len(own)
        pairs = list(zip(saved, own, strict=True)) if is_alike else []
    else:
        pairs = []
        if isinstance(own, int | float) and not isinstance(own, bool):
            is_alike = type(saved) in (int, float) and isfinite(saved)
        else:
            is_alike = type(saved) is type(own)
    if not is_alike:
        raise ValueError(f"its {what} is not as saved")
    for one, other in pairs:
        _check_alike(what, one, other)
