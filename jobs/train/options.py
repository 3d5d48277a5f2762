"""The options of `detr-batch train`."""

from dataclasses import dataclass, field
from pathlib import Path

FROM_SCRATCH = "random"  # name of random weights, as in model.named.RANDOM
# The options that name a data set, and what is trained on without one.
DATA = ("images", "annotations", "validation_images", "validation_annotations")
RENDERED = "rendered scenes"


@dataclass(frozen=True)
class TrainOptions:
    """A recipe: everything that determines the trained weights.

    Fields without a help text are not offered on the command line.
    """

    output: Path = field(
        metadata={"positional": True, "help": "folder for checkpoints and weights"}
    )
    model: str = field(default="shapes-tiny", metadata={"help": "a name of `detr-batch models`"})
    weights: str = field(
        default=FROM_SCRATCH,
        metadata={
            "help": "where to start: 'random', 'packaged', the name of a model, a file, a URL or a "
            "hub id"
        },
    )
    images: Path | None = field(
        default=None, metadata={"help": "folder of training images; none: rendered scenes"}
    )
    annotations: Path | None = field(
        default=None, metadata={"help": "COCO annotation file of --images"}
    )
    validation_images: Path | None = field(
        default=None, metadata={"help": "to evaluate on (default: --images)"}
    )
    validation_annotations: Path | None = field(
        default=None, metadata={"help": "of those (default: --annotations)"}
    )
    steps: int = field(default=14_000, metadata={"help": "batches"})
    batch_size: int = field(default=4, metadata={"help": "images"})
    learning_rate: float | None = field(  # None: see `rate`
        default=None,
        metadata={"help": "highest (default: 4e-4 from random weights, else 5e-5)"},
    )
    weight_decay: float = 1e-4
    warmup: int = 100  # steps
    clip_norm: float = 0.1  # as published
    # For training from scratch only. Encoders learn fast when every object has several proposals. A
    # decoder that gets several equal proposals, however, learns to name an object twice.
    proposals_per_object: int = 4  # see `criterion`; for the first steps
    # share of the steps with several proposals; afterwards each object has one
    dense_share: float = 0.12
    freeze_norms: float = 0.5  # share of the steps after which batch norms keep their statistics
    evaluate_every: int = field(
        default=1000, metadata={"help": "steps between evaluations and checkpoints"}
    )
    evaluate_images: int = field(default=100, metadata={"help": "held-out scenes to evaluate on"})
    seed: int = field(default=0, metadata={"help": "of weights and images"})
    precision: str = field(
        default="auto",
        metadata={"choices": ("auto", "fp32", "bf16", "fp16"), "help": "of the arithmetic"},
    )
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1, ..."})

    @property
    def from_scratch(self) -> bool:
        return self.weights == FROM_SCRATCH

    @property
    def rate(self) -> float:
        """The highest learning rate; the default is lower for weights that are already trained."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 4e-4 if self.from_scratch else 5e-5
