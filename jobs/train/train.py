"""Train a model from scratch on rendered scenes, or fine-tune one on a dataset in COCO's format."""

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from jobs.accounting.plurals import counted
from jobs.evaluate.average_precision import Found, average_precision
from jobs.train.checkpoints import (
    WEIGHTS,
    Checkpoints,
    locked,
    options_of_beginning,
    refuse_other_training,
)
from jobs.train.data import Sample, ScenesForTraining
from jobs.train.datasets import (
    Training,
    Validation,
    datasets,
    describe_images,
    describe_start,
    describe_validation,
    has_validation_set,
    print_notes,
)
from jobs.train.image_files import Unreadable
from jobs.train.options import TrainOptions
from model.criterion import criterion
from model.detector import Detections
from model.named import RANDOM, weights_of
from model.preprocess import batch_images
from model.set_detector import SetDetector
from model.zoo import create_model
from pipeline.storage.errors import CommandFailed, InputError
from pipeline.storage.urls import mask

TOP = 100  # detections of an image that count, as published
SAVE_SECONDS = 600.0  # longest time between two checkpoints
NEXT_TO_NOTHING = 0.01  # AP of a model whose boxes mean little yet
NO_AP = "no AP: no image of the validation set that can be decoded has a box"
SAY_SECONDS = 30.0  # time between lines of progress where there is no terminal


class LeftOut:
    """Images that proved to be damaged while they were decoded. Each is said once."""

    def __init__(self) -> None:
        self.reasons: dict[Path, str] = {}

    def without(self, loaded: Sequence[Sample | Unreadable]) -> list[Sample]:
        """The samples of a batch that could be decoded."""
        for one in loaded:
            if isinstance(one, Unreadable) and one.path not in self.reasons:
                self.reasons[one.path] = one.reason
                print_notes("", [f"{one.path} cannot be decoded and is left out: {one.reason}"])
        return [one for one in loaded if isinstance(one, Sample)]

    def refuse_all(self, count: int) -> None:
        """Raise CommandFailed if all images of a dataset are damaged."""
        if len(self.reasons) >= count:
            path, reason = next(iter(self.reasons.items()))
            raise CommandFailed(f"none of {count} images can be decoded: {path}: {reason}")


def evaluate(
    net: SetDetector, dataset: Validation, device: str, left_out: LeftOut | None = None
) -> dict[str, float]:
    """Compute COCO AP of `net`, one image at a time, with the best 100 detections of each.

    Images that cannot be decoded are left out, and added to `left_out`.
    """
    net.eval()
    left_out = left_out or LeftOut()
    image_ids: list[str] = []
    found: list[Detections] = []
    images: set[str] = set()
    with torch.inference_mode():
        for index in range(len(dataset)):
            for sample in left_out.without([dataset[index]]):
                output = net(*batch_images([sample.image], device))
                found.append(net.choose(output, torch.tensor([sample.size]), TOP))
                image_ids += [sample.image_id] * found[-1].scores.shape[1]
                images.add(sample.image_id)
    if not images:
        left_out.refuse_all(len(dataset))
    scores, labels, boxes = (
        torch.cat([getattr(one, name)[0] for one in found]).cpu().numpy()
        for name in ("scores", "labels", "boxes")
    )
    detections = Found(np.array(image_ids, object), labels, scores, boxes)
    return average_precision(dataset.truth(), detections, images).metrics


def order(dataset: Training, options: TrainOptions, start: int) -> list[int]:
    """List image indices from step `start` on; a dataset of files is shuffled each epoch."""
    total = options.steps * options.batch_size
    if isinstance(dataset, ScenesForTraining):
        return list(range(start * options.batch_size, total))
    generator = torch.Generator().manual_seed(options.seed)
    size = len(dataset)  # type: ignore[arg-type]
    indices: list[int] = []
    while len(indices) < total:
        indices += torch.randperm(size, generator=generator).tolist()
    return indices[start * options.batch_size : total]


def optimizer_of(net: SetDetector, options: TrainOptions) -> torch.optim.Optimizer:
    """Make AdamW; a pretrained trunk, sampling offsets and reference points learn at a tenth.

    The compact trunk has no pretrained weights, so everything learns at the full rate with it.
    """
    slow_names = ["sampling_offsets", "reference_points", "backbone"]
    if net.config.backbone == "compact":
        slow_names.clear()
    fast: list[torch.nn.Parameter] = []
    slow: list[torch.nn.Parameter] = []
    for name, parameter in net.named_parameters():
        (slow if any(part in name for part in slow_names) else fast).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": fast},
        {"params": slow, "lr": options.rate * 0.1},
    ]
    return torch.optim.AdamW(groups, options.rate, weight_decay=options.weight_decay, fused=True)


def schedule(step: int, options: TrainOptions) -> float:
    """Return the share of the learning rate: a linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / options.warmup)
    return warm * 0.5 * (1 + math.cos(math.pi * step / options.steps))


def train(options: TrainOptions, resume: bool = False) -> dict[str, float]:
    """Run the recipe; returns the last evaluation.

    Writes `OUTPUT/last.pt` (everything that `resume` needs) at each evaluation, and at least every
    SAVE_SECONDS, and `OUTPUT/model.safetensors` (half precision) at each evaluation.
    """
    for name in ("steps", "batch_size", "evaluate_every", "evaluate_images"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1")
    if not options.rate > 0:
        raise InputError("--learning-rate must be more than 0")
    if options.output.exists() and not options.output.is_dir():
        raise InputError(f"OUTPUT {options.output} is no folder: name one that train may write")
    refuse_device(options.device)
    weights_of(options.model, options.weights)  # names that do not fit are refused at once
    torch.manual_seed(options.seed)
    refuse_other_training(options.output, resume)
    if resume:
        options = options_of_beginning(options)
    training, validation, labels = datasets(options)
    net = create_model(
        options.model,
        RANDOM if resume else options.weights,
        options.device,
        options.precision,
        labels=labels,
        training=True,
    )
    with locked(options.output):
        refuse_other_training(options.output, resume)  # which may have ended meanwhile
        return _train(options, net, training, validation, resume)


def _train(
    options: TrainOptions,
    net: SetDetector,
    training: Training,
    validation: Validation,
    resume: bool,
) -> dict[str, float]:
    """Train `net` from where it starts, or goes on, to the last step."""
    measured_on = describe_validation(options, validation)
    images = describe_images(training)
    if not resume:
        print(describe_start(options, training, net.has_new_heads))
    print(measured_on, flush=True)
    optimizer = optimizer_of(net, options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, options))
    checkpoints = Checkpoints(options, net, optimizer, scheduler, images)
    left_out = LeftOut()
    recipe = {key: str(value) for key, value in asdict(options).items() if key != "output"}
    recipe |= {"weights": mask(options.weights), "trained_on": images, "validation": measured_on}

    def evaluate_and_save(step: int, loss: str) -> dict[str, float]:
        score = evaluate(net, validation, options.device, left_out)
        known = score["AP"] >= 0  # COCO's value is -1 where there is no object to find
        aps = f"AP {score['AP']:.4f}, AP50 {score['AP50']:.4f}" if known else NO_AP
        print(f"step {step}: {loss}{aps}", flush=True)
        checkpoints.save(step)
        checkpoints.save_weights({"AP": f"{score['AP']:.4f}", "step": str(step), **recipe})
        return score

    start = checkpoints.load() if resume else 0
    if start >= options.steps:
        if checkpoints.weights.exists():
            raise InputError(f"{checkpoints.last} is of step {start}: nothing to resume")
        return evaluate_and_save(start, "")  # it ended before it wrote them
    loader = DataLoader(
        training,
        batch_size=options.batch_size,
        sampler=order(training, options, start),
        collate_fn=list,
        num_workers=1,
    )
    score: dict[str, float] = {}
    saved = time.monotonic()
    for step, loss in steps(net, loader, optimizer, scheduler, options, start, left_out):
        if step % options.evaluate_every == 0 or step == options.steps:
            score = evaluate_and_save(step, f"loss {loss:.3f}, ")
        elif time.monotonic() - saved > SAVE_SECONDS:
            checkpoints.save(step)
        else:
            continue
        saved = time.monotonic()
    if left_out.reasons:
        count = len(left_out.reasons)
        print_notes("", [f"left out: {counted(count, 'image')} that could not be decoded"])
    return score


def describe_end(options: TrainOptions, ap: float) -> str:
    """The last lines of a training: its AP, what to do if that is next to nothing, how to label."""
    measured_on = "validation" if has_validation_set(options) else "training"
    lines = [f"AP {ap:.4f} on the {measured_on} set" if ap >= 0 else NO_AP]
    if 0 <= ap < NEXT_TO_NOTHING:
        lines.append(
            f"the model finds next to nothing after {counted(options.steps, 'step')}: train it for "
            "longer, as by --resume with a larger --steps, before you label with it"
        )
    weights = shlex.quote(str(options.output / WEIGHTS))
    lines.append(
        f"to use it: detr-batch label INPUT OUTPUT --model {options.model} --weights {weights}"
    )
    return "\n".join(lines)


def refuse_device(device: str) -> None:
    """Raise InputError for a device that this machine does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--device {device} cannot be used here: {reason}") from error


def freeze_norms(net: SetDetector) -> None:
    """Let batch norms use, and keep, the statistics seen so far, as they do in inference."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


def loss_of(
    net: SetDetector, samples: Sequence[Sample], options: TrainOptions, step: int
) -> torch.Tensor:
    """Compute the loss of one batch."""
    dense = options.from_scratch and step <= options.dense_share * options.steps
    values, mask = batch_images([sample.image for sample in samples], options.device)
    loss, _ = criterion(
        net(values, mask),
        [sample.target.to(options.device) for sample in samples],
        net.class_loss,
        proposals_per_object=options.proposals_per_object if dense else 1,
        named_proposals=options.from_scratch and not net.config.labels[0],
    )
    return loss


def steps(
    net: SetDetector,
    loader: DataLoader[Sample | Unreadable],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    options: TrainOptions,
    start: int,
    left_out: LeftOut,
) -> Iterator[tuple[int, float]]:
    """Make one optimizer step for each batch; yield its number and the running mean of the loss.

    Images that cannot be decoded are left out of their batches, and added to `left_out`.
    CommandFailed if none can, or if the loss is not finite any more.
    """
    columns = ("{task.description}", MofNCompleteColumn(), TimeRemainingColumn())
    columns_ = [TextColumn(c) if isinstance(c, str) else c for c in columns]
    running = 0.0
    with Progress(*columns_) as progress:
        task = progress.add_task("train", total=options.steps, completed=start)
        began = said = time.monotonic()
        for step, loaded in enumerate(loader, start + 1):
            samples = left_out.without(loaded)
            if not samples:  # nothing to learn in this step
                left_out.refuse_all(len(loader.dataset))  # type: ignore[arg-type]
                yield step, running
                continue
            net.train()
            if not options.from_scratch or step > options.freeze_norms * options.steps:
                freeze_norms(net)
            loss = loss_of(net, samples, options, step)
            if not loss.isfinite():
                raise CommandFailed(
                    f"the loss became {loss.item()} at step {step}: go on with --resume and a "
                    "lower --learning-rate"
                )
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(net.parameters(), options.clip_norm)
            optimizer.step()
            scheduler.step()
            running += (loss.item() - running) / min(step - start, 100)
            now = time.monotonic()
            a_step = (now - began) / (step - start)
            state = f"loss {running:.3f}, {options.batch_size / a_step:.1f} images/s"
            progress.update(task, completed=step, description=state)
            if not progress.console.is_terminal and (step == start + 1 or now - said > SAY_SECONDS):
                left = timedelta(seconds=round(a_step * (options.steps - step)))
                print(f"step {step} of {options.steps}: {state}, {left} left", flush=True)
                said = now
            yield step, running
