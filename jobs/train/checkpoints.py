"""What a training leaves in its folder: `last.pt`, to go on from, and the weights to label with."""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from jobs.train.options import TrainOptions
from model.checkpoint import save_weights
from model.set_detector import SetDetector
from pipeline.storage.errors import CommandFailed, InputError

LAST, WEIGHTS, LOCK = "last.pt", "model.safetensors", "train.lock"


def refuse_other_training(folder: Path, resume: bool) -> None:
    """InputError if a folder has a training that is not resumed, or none to resume."""
    if resume and not (folder / LAST).exists():
        raise InputError(f"--resume: there is no {folder / LAST}")
    if not resume and ((folder / LAST).exists() or (folder / WEIGHTS).exists()):
        raise InputError(
            f"OUTPUT {folder} holds a training: --resume goes on with it; for another one name "
            "another folder"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of this machine. CommandFailed if another training holds it.

    The system releases the lock of a process that ends in whatever way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandFailed(
                f"another training writes to {folder}: wait for it, or name another folder"
            ) from error
        yield
    finally:
        os.close(file)


class Checkpoints:
    """The state of a training, and its folder."""

    def __init__(
        self,
        options: TrainOptions,
        net: SetDetector,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
    ):
        self.options, self.net = options, net
        self.optimizer, self.scheduler = optimizer, scheduler
        self.last, self.weights = options.output / LAST, options.output / WEIGHTS

    def save(self, step: int) -> None:
        """Write all that a later command needs to go on behind this step."""
        state = {
            "model": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "labels": list(self.net.config.labels),
            "step": step,
        }
        unfinished = self.last.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.replace(self.last)

    def save_weights(self, notes: Mapping[str, str]) -> None:
        save_weights(self.net, self.weights, notes)

    def load(self) -> int:
        """Go on from `last.pt`; its step. A --learning-rate that is given replaces the earlier one.

        InputError if its classes are others than those of the annotations, and CommandFailed if the
        file is not as saved.
        """
        rates = [float(rate) for rate in self.scheduler.base_lrs]
        try:
            saved = torch.load(self.last, weights_only=True)
            self.net.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scheduler.load_state_dict(saved["scheduler"])
            step, labels = int(saved["step"]), tuple(saved.get("labels", self.net.config.labels))
        except Exception as error:  # files break in many ways, and torch has no common error
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CommandFailed(
                f"{self.last} is damaged, or of a training with other options: put back what was "
                f"there, or begin anew without --resume ({reason})"
            ) from error
        if labels != tuple(self.net.config.labels):
            raise InputError(
                f"--resume: {self.last} has learnt the classes {_listed(labels)}, and the "
                f"annotations have {_listed(self.net.config.labels)}: give the annotations that "
                "the training began with, or name another folder"
            )
        if self.options.learning_rate is not None:
            self._set_rates(rates)
        return step

    def _set_rates(self, rates: Sequence[float]) -> None:
        """Set the highest rate of each group of parameters."""
        self.scheduler.base_lrs = list(rates)
        share = self.scheduler.lr_lambdas[0](self.scheduler.last_epoch)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["initial_lr"], group["lr"] = rate, rate * share


def _listed(labels: tuple[str, ...]) -> str:
    return ", ".join(f"{number}={name}" for number, name in enumerate(labels) if name)
