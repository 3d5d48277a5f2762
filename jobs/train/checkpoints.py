"""What a training leaves in its folder: `last.pt`, to go on from, and the weights to label with."""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jobs.boxes.options import option_of
from jobs.train.options import DATA, FROM_SCRATCH, RENDERED, TrainOptions
from jobs.train.saved_state import check_header, check_model, check_optimizer, check_scheduler
from model.checkpoint import save_weights
from model.set_detector import SetDetector
from pipeline.storage.errors import CommandFailed, InputError
from pipeline.storage.unfinished import named_in_errors
from pipeline.storage.urls import mask

LAST, WEIGHTS, LOCK = "last.pt", "model.safetensors", "train.lock"
MOST_LISTED = 10  # classes
MOST_OF_REASON = 200  # characters of an error of torch, which names all parameters that do not fit


def refuse_other_training(folder: Path, resume: bool) -> None:
    """InputError if a folder has a training that is not resumed, or none to resume."""
    if resume and not (folder / LAST).exists():
        raise InputError(f"--resume: there is no {folder / LAST}")
    if not resume and ((folder / LAST).exists() or (folder / WEIGHTS).exists()):
        raise InputError(
            f"OUTPUT {folder} holds a training: --resume goes on with it; for another one name "
            "another folder"
        )


def options_of_beginning(options: TrainOptions) -> TrainOptions:
    """The options of a resumed training, with the weights and the data set that it began with.

    InputError if other weights are given, or another model. Another data set may be.
    """
    last = options.output / LAST
    saved = _read(last)
    began, model = saved.get("weights"), saved.get("model_name", options.model)
    if model != options.model:
        raise InputError(f"--resume: {last} is of a training of {model}: give --model {model}")
    if not any(getattr(options, name) for name in DATA):
        options = _with_data(options, saved)
    if began is None:  # earlier versions did not record them
        return options
    if options.weights not in (FROM_SCRATCH, began) and mask(options.weights) != began:
        raise InputError(f"--resume: the training began from --weights {began}: leave it out")
    return replace(options, weights=began)


def _with_data(options: TrainOptions, saved: Mapping[str, Any]) -> TrainOptions:
    """The options with the data set of the last command."""
    if data := saved.get("data"):
        words = (f"{option_of(name)} {path}" for name, path in data.items())
        print(f"{' '.join(words)}, as before", flush=True)
        paths: dict[str, Any] = {name: Path(path) for name, path in data.items()}
        return replace(options, **paths)
    if (images := saved.get("images", RENDERED)) != RENDERED:  # of an earlier version
        raise InputError(
            f"--resume: it was trained on {images}: give --images and --annotations again"
        )
    return options


def _read(last: Path) -> dict[str, Any]:
    """The content of `last.pt`. CommandFailed if it is not as saved."""
    try:
        saved: dict[str, Any] = torch.load(last, map_location="cpu", weights_only=True, mmap=True)
        check_header(saved)
    except Exception as error:  # files break in many ways, and torch has no common error
        raise _damaged(last, error) from error
    return saved


def _damaged(last: Path, error: Exception) -> CommandFailed:
    reason = " ".join(str(error).split())[:MOST_OF_REASON] or type(error).__name__
    return CommandFailed(
        f"{last} is damaged, or of a training with other options: put back what was there, or "
        f"begin anew without --resume ({reason})"
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
        images: str,
    ):
        """`images` says what is trained on."""
        self.options, self.net, self.images = options, net, images
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
            "model_name": self.options.model,
            "weights": mask(self.options.weights),
            "images": self.images,
            "data": {
                name: str(path.absolute())
                for name in DATA
                if (path := getattr(self.options, name)) is not None
            },
        }
        unfinished = self.last.with_suffix(".tmp")
        with named_in_errors(self.last):
            try:
                with unfinished.open("wb") as file:  # to a path, torch hides that the disk is full
                    torch.save(state, file)
                unfinished.replace(self.last)
            finally:
                unfinished.unlink(missing_ok=True)

    def save_weights(self, notes: Mapping[str, str]) -> None:
        with named_in_errors(self.weights):
            save_weights(self.net, self.weights, notes)

    def load(self) -> int:
        """Go on from `last.pt`; its step. A --learning-rate that is given replaces the earlier one.

        What is trained on may differ, which is said. InputError if its classes are others than
        those of the annotations, and CommandFailed if the file is not as saved.
        """
        rates = [float(rate) for rate in self.scheduler.base_lrs]
        saved = _read(self.last)
        labels = tuple(saved.get("labels", self.net.config.labels))
        if labels != tuple(self.net.config.labels):
            raise InputError(
                f"--resume: {self.last} has learnt the classes {_listed(labels)}, and the "
                f"annotations have {_listed(self.net.config.labels)}: give the annotations that "
                "the training began with, or name another folder"
            )
        step: int = saved["step"]
        try:
            check_model(saved["model"])
            check_optimizer(saved["optimizer"], self.optimizer)
            check_scheduler(saved["scheduler"], self.scheduler)
            self.net.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scheduler.load_state_dict(saved["scheduler"])
        except Exception as error:  # as above
            raise _damaged(self.last, error) from error
        print(f"resumed from step {step} of {self.last}, on {self.images}", flush=True)
        if (before := saved.get("images", self.images)) != self.images:
            print(f"before that step it was trained on {before}", flush=True)
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
    """The first classes by their numbers, and how many more there are."""
    named = [f"{number}={name}" for number, name in enumerate(labels) if name]
    more = f" and {len(named) - MOST_LISTED} more" if len(named) > MOST_LISTED else ""
    return ", ".join(named[:MOST_LISTED]) + more
