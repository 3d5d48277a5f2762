"""The training set and the validation set of a training, and what is said of them."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch.utils.data import Dataset

from jobs.accounting.plurals import counted
from jobs.boxes.options import option_of
from jobs.coco.records import Annotations
from jobs.train.coco_dataset import CocoDataset
from jobs.train.data import HeldOutScenes, Sample, ScenesForTraining
from jobs.train.image_files import Unreadable
from jobs.train.options import RENDERED, TrainOptions
from model.named import PACKAGED, named_model, weights_of
from pipeline.storage.errors import InputError
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.urls import mask, printable

Training = Dataset[Sample | Unreadable]


class Validation(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample | Unreadable: ...
    def truth(self) -> Annotations: ...


def datasets(options: TrainOptions) -> tuple[Training, Validation, tuple[str, ...]]:
    """Return the training set, the validation set, and their labels; say what is odd about them.

    InputError if images come without annotations, or with annotations that cannot be used.
    """
    rule = named_model(options.model).config().resize
    needing = ("annotations", "validation_images", "validation_annotations")
    if options.images is None:
        for name in needing:
            if getattr(options, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} needs --images, a folder of images")
        length = options.steps * options.batch_size
        scenes = ScenesForTraining(options.seed, length, options.batch_size, rule)
        return scenes, HeldOutScenes(options.evaluate_images, rule), ScenesForTraining.labels
    if options.annotations is None:
        raise InputError("--images needs --annotations, a file in COCO's format")
    for name in ("images", *needing):
        path = getattr(options, name)
        if path is not None:
            with explain_errors(option_of(name), str(path)):
                path.stat()
    training = CocoDataset(options.images, options.annotations, rule, flip=True)
    validation = training.for_validation()
    if options.validation_images or options.validation_annotations:
        validation = CocoDataset(
            options.validation_images or options.images,
            options.validation_annotations or options.annotations,
            rule,
            flip=False,
        )
        refuse_other_classes(training.annotations.classes, validation.annotations.classes)
        print_notes("validation: ", validation.notes)
    print_notes("", training.notes)
    return training, validation, training.labels


def refuse_other_classes(trained: Mapping[int, str], validated: Mapping[int, str]) -> None:
    """Raise InputError where a number means another class in the validation than in training."""
    for class_id, name in validated.items():
        if trained.get(class_id) != name:
            known = trained.get(class_id, "no category")
            raise InputError(
                f"the category {class_id} is {name} in --validation-annotations and {known} in "
                "--annotations: give both files the same categories"
            )


def print_notes(prefix: str, notes: Sequence[str]) -> None:
    for note in notes:
        print(printable(f"{prefix}{note}"), file=sys.stderr)


def describe_start(options: TrainOptions, training: Training, has_new_heads: bool) -> str:
    """What the training starts from, and what it learns."""
    place = weights_of(options.model, options.weights)
    if options.from_scratch:
        weights = "random weights"
    elif place == str(PACKAGED):
        weights = "the packaged weights of shapes-tiny"
    else:
        weights = f"the weights {mask(place)}"
    hint = "; --weights takes trained ones" if options.from_scratch and options.images else ""
    heads = ""
    if not options.from_scratch:
        heads = (
            "; the heads of classes start anew"
            if has_new_heads
            else "; the categories are the classes of the weights, whose heads are kept"
        )
    return printable(
        f"training {options.model} from {weights}{hint}, on {describe_images(training)}{heads}"
    )


def describe_images(training: Training) -> str:
    """What is trained on."""
    if not isinstance(training, CocoDataset):
        return RENDERED
    boxes = sum(len(labels) for _, labels in training.boxes.values())
    names = len([name for name in training.labels if name])
    images = counted(len(training), "image")
    return f"{images} with {counted(boxes, 'box')} of {names} categories"


def describe_validation(options: TrainOptions, validation: Validation) -> str:
    """What AP is measured on, and what it says if that is the training set."""
    if options.images is None:
        return f"validation set: {counted(len(validation), 'held-out rendered scene')}"
    images = options.validation_images or options.images
    annotations = options.validation_annotations or options.annotations
    said = f"{counted(len(validation), 'image')} of {_describe_places(validation, images)}"
    said += str(annotations)
    if has_validation_set(options):
        return printable(f"validation set: {said}")
    return printable(
        f"validation set: none is given, so AP is that of the training set ({said}) and says "
        "little about other images; --validation-images and --validation-annotations name one"
    )


def _describe_places(validation: Validation, folder: Path) -> str:
    """Where the images of a dataset lie, up to a comma; "" where none lies in its folder."""
    outside = len(validation.files.outside) if isinstance(validation, CocoDataset) else 0
    if not outside:
        return f"{folder}, "
    if outside == len(validation):
        return ""
    return f"{folder} and of where absolute names lead, "


def has_validation_set(options: TrainOptions) -> bool:
    """Whether AP is measured on other images than those of the training."""
    given = (
        (options.validation_images, options.images),
        (options.validation_annotations, options.annotations),
    )
    return options.images is None or any(one not in (None, trained) for one, trained in given)
