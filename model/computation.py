"""What decides the bits of a detection beside the image and the weights."""

from dataclasses import dataclass

import torch

from model.ops.torch_internals import multiplies_bf16
from model.predictor import count_on
from model.zoo import resolved_precision


@dataclass(frozen=True)
class Computation:
    """The arithmetic of a detector. Detectors of equal computations give equal bits."""

    device: str  # "cpu" or "cuda"
    precision: str  # "fp32", "bf16", "fp16", "mixed" or "int8"
    hardware: str  # name of the GPU; of a CPU its instruction set and the threads of a detector
    count: int = 1  # images in every batch

    def as_text(self) -> str:
        """Such as "bf16 on cuda (NVIDIA H100 80GB HBM3, 8 images at once)"."""
        count = f", {self.count} images at once" if self.count > 1 else ""
        return f"{self.precision} on {self.device} ({self.hardware}{count})"


def computation_here(
    device: str, precision: str, threads: int, count: int | None = None
) -> Computation:
    """What a detector on this machine computes with.

    `precision` may be "auto". On a CPU a detector has `threads` threads; on a GPU a batch has
    `count` images, or as many as is best there.
    """
    if device == "cuda":
        hardware = torch.cuda.get_device_name()
    else:
        instructions = torch.backends.cpu.get_cpu_capability()
        bf16 = " with bf16" if multiplies_bf16() else ""
        hardware = f"{instructions}{bf16}, {threads} thread{'s' * (threads > 1)}"
    return Computation(
        device, resolved_precision(precision, device), hardware, count_on(device, count)
    )
