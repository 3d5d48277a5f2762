"""What an engine is made of, from the options of the command and a description of its detector."""

import secrets
from dataclasses import dataclass

import torch

from jobs.serve.engine.parts import DecodingSpec, ServedModel
from jobs.serve.settings.options import ServeOptions
from model.computation import Computation, computation_here
from model.description import Description
from model.detectors import describe, settled
from model.named import RANDOM
from model.zoo import offered_precision
from pipeline.stages.detect import CPU_CALLS, CPU_THREADS, DetectorSpec

# Calls that a detector on a GPU computes at once, each of up to 8 images: its batches are full.
GPU_CALLS = 8


@dataclass(frozen=True)
class EngineSpec:
    """The parameters from which an engine is built."""

    served: ServedModel
    decoding: DecodingSpec
    detector: DetectorSpec


def engine_spec(
    options: ServeOptions, described: Description, computation: Computation
) -> EngineSpec:
    """The engine of a described detector. Its detections have the bits of `label`."""
    on_cpu = computation.device == "cpu"
    detector = DetectorSpec(
        settled(options.model),
        described.place or options.weights,
        computation.device,
        computation.precision,
        0.0,
        computation.count,
        session=secrets.token_hex(8),
        sha256=None if described.weights == RANDOM else described.weights,
        threads=CPU_THREADS,
        calls=CPU_CALLS if on_cpu else GPU_CALLS,
    )
    return EngineSpec(
        ServedModel(options.model, described.labels, options.max_queue),
        DecodingSpec(described.resize, options.max_pixels, enlarge=on_cpu),
        detector,
    )


def local_engine_spec(options: ServeOptions) -> EngineSpec:
    """The engine of a detector on this machine, for use without Ray. Raises as `describe`."""
    described = describe(settled(options.model), options.weights)
    precision = offered_precision(options.model, described.precisions, options.precision)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return engine_spec(options, described, computation_here(device, precision, CPU_THREADS))
