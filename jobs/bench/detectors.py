"""Detectors that are timed, ours and its peers, each in a process of its own."""

import multiprocessing
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.bench.measure import say_progress
from jobs.bench.peers import VARIANTS, peer
from model.cuda_graphs import RECORD_AT, Graphed, record
from model.description import Load
from model.detectors import load
from model.host_memory import keep_freed_memory
from model.named import set_config
from model.preprocess import form_batch
from model.zoo import create_model
from pipeline.storage.errors import CommandFailed

Answer = tuple[Tensor, Tensor]  # logits and boxes
Forward = Callable[[Tensor], Answer]  # takes (B, 3, H, W) fp32
OURS, PEER, OPENVINO = "detr-batch", "transformers", "openvino"
GRAPH = "transformers, CUDA graph"
# Modes of torch.compile; "compiled" is its default mode.
COMPILED, REDUCE_OVERHEAD, MAX_AUTOTUNE = (
    f"transformers, {how}" for how in ("compiled", "reduce-overhead", "max-autotune")
)

DETECTOR = "detr-batch, pixels to boxes"
FASTER_RCNN = "torchvision's Faster R-CNN R50-FPN"  # another model, so its answers are not compared
CALIBRATION_IMAGES = 3  # of int8; more do not change its time
WARM_UP, GPU_WARM_UP = 2, RECORD_AT + 1  # number of requests
# Tolerances on random weights, as a share of the largest logit: bf16 has 8 bits, and TF32 10.
TOLERANCES = {"fp32": 1e-3, "TF32": 2e-2, "bf16": 0.1, "fp16": 0.1, "mixed": 0.1, "int8": 0.1}


@dataclass(frozen=True)
class Subject:
    """One way to run a model, in a process of its own."""

    name: str  # name in BUILDERS
    # "fp32", "bf16", "fp16"; for peers also "TF32" and "bf16 autocast", for OpenVINO also "int8"
    precision: str
    model: str
    weights: Path | None  # in transformers' layout; None: the model's own weights
    size: tuple[int, int]  # rows and columns of the images
    batch: int
    device: str
    compile_threads: int = 1  # with more threads, processes stay behind


def _ours(subject: Subject) -> Forward:
    if subject.device == "cpu":
        keep_freed_memory()  # detectors of the pipeline do this too
    weights = None if subject.weights is None else str(subject.weights)
    net = create_model(subject.model, weights, subject.device, subject.precision)

    def forward(images: Tensor) -> Tensor:
        out = net(images)
        return torch.cat((out.pred_logits, out.pred_boxes), dim=-1)

    on_gpu = subject.device != "cpu"
    # detectors of the pipeline do this too
    recorded = Graphed(forward, net.kept_positions) if on_gpu else forward

    def run(images: Tensor) -> Answer:
        both = recorded(images)
        return both[..., :-4], both[..., -4:]

    return run


def _allow_tf32(subject: Subject) -> None:
    """Let a peer multiply fp32 as TF32, unless its precision is fp32."""
    allowed = subject.precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _transformers(subject: Subject, mode: str | None = None) -> Forward:
    """Build transformers' model: unchanged for fp32 and TF32.

    Other precisions use channels last, with bf16 weights or under autocast. `mode` is
    torch.compile's; None does not compile.
    """
    _allow_tf32(subject)
    net: Any = peer(subject.model).to(subject.device)
    faster = subject.precision not in ("fp32", "TF32")
    dtype = torch.bfloat16 if subject.precision == "bf16" else torch.float32
    order = torch.channels_last if faster else torch.contiguous_format
    net = net.to(dtype, memory_format=order)
    if mode is not None:
        from torch._inductor import config

        config.compile_threads = subject.compile_threads
    forward: Any = net if mode is None else torch.compile(net, mode=mode)

    def run(images: Tensor) -> Answer:
        autocast = subject.precision == "bf16 autocast"
        with torch.autocast(subject.device, torch.bfloat16, enabled=autocast):
            out = forward(pixel_values=images.to(dtype, memory_format=order))
        return out.logits.float(), out.pred_boxes.float()

    return run


def _transformers_graph(subject: Subject) -> Forward:
    """Record transformers' model as a CUDA graph.

    RuntimeError if the model waits for the host.
    """
    forward = _transformers(subject)
    own = torch.zeros(subject.batch, 3, *subject.size, device=subject.device)
    graph, answer = record(lambda: forward(own))

    def run(images: Tensor) -> Answer:
        own.copy_(images)
        graph.replay()
        return answer

    return run


def _openvino(subject: Subject) -> Forward:
    """Convert transformers' model to OpenVINO; the hardware decides how a precision is computed.

    What int8 leaves floating has the precision that OpenVINO chooses for the hardware.
    """
    import openvino

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net: Any = peer(subject.model)

        def forward(self, images: Tensor) -> Answer:
            out = self.net(pixel_values=images)
            return out.logits, out.pred_boxes

    example = torch.zeros(subject.batch, 3, *subject.size)
    converted = openvino.convert_model(Plain().eval(), example_input=example)
    if subject.precision == "int8":
        compiled = openvino.compile_model(_quantized(converted, example.shape), "CPU")
    else:
        hints = {"INFERENCE_PRECISION_HINT": subject.precision.replace("fp", "f")}
        compiled = openvino.compile_model(converted, "CPU", hints)

    def run(images: Tensor) -> Answer:
        logits, boxes = compiled(images.numpy()).values()
        return torch.from_numpy(logits), torch.from_numpy(boxes)

    return run


def _quantized(converted: Any, shape: tuple[int, ...]) -> Any:
    """Quantize the convolutions and linear layers of an OpenVINO model to int8.

    NNCF calibrates on noise of `shape`, which the subjects are timed on too, and leaves the
    sampling of the attention floating. Random weights tell the time of int8, not its accuracy.
    """
    import nncf

    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(shape, generator=generator).numpy() for _ in range(CALIBRATION_IMAGES)]
    with redirect_stdout(sys.stderr):  # bars of progress
        return nncf.quantize(
            converted,
            nncf.Dataset(noise),
            subset_size=len(noise),
            model_type=nncf.ModelType.TRANSFORMER,
        )


def _faster_rcnn(subject: Subject) -> Forward:
    """Build it with random weights. Few boxes pass its threshold, so its last step is cheap."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    _allow_tf32(subject)
    sides = {"min_size": min(subject.size), "max_size": max(subject.size)}
    net: Any = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, **sides)
    net = net.eval().to(subject.device, memory_format=torch.channels_last)

    def run(images: Tensor) -> Answer:
        autocast = subject.precision == "bf16 autocast"
        with torch.autocast(subject.device, torch.bfloat16, enabled=autocast):
            found = net(list(images.sigmoid()))
        scores, boxes = (torch.cat([one[key] for one in found]) for key in ("scores", "boxes"))
        return scores.float(), boxes.float()  # under autocast these may be bf16, which numpy lacks

    return run


def _detector(subject: Subject) -> Forward:
    """Build the detector as `label` runs it: pixels of one displayed size in, boxes out."""
    if subject.device == "cpu":
        keep_freed_memory()
    weights = None if subject.weights is None else str(subject.weights)
    detector = load(
        subject.model, Load(weights, None, subject.device, subject.precision, subject.batch)
    )
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(
            0, 256, (*detector.resize.target_size(*subject.size), 3), generator=generator
        ).to(torch.uint8)
        for _ in range(detector.count)
    ]
    pixels, valid, sources = form_batch(images, detector)
    sizes = torch.tensor([subject.size] * detector.count)

    def run(_: Tensor) -> Answer:
        found = detector.submit(pixels, valid, sizes, sources).result()
        return found.scores, found.boxes

    return run


BUILDERS: dict[str, Callable[[Subject], Forward]] = {
    OURS: _ours,
    DETECTOR: _detector,
    PEER: _transformers,
    GRAPH: _transformers_graph,
    COMPILED: partial(_transformers, mode="default"),
    REDUCE_OVERHEAD: partial(_transformers, mode="reduce-overhead"),
    MAX_AUTOTUNE: partial(_transformers, mode="max-autotune"),
    OPENVINO: _openvino,
    FASTER_RCNN: _faster_rcnn,
}


@dataclass(frozen=True)
class Reply:
    """The answer of a subject's process to one request."""

    seconds: float
    answer: tuple[Any, Any]  # arrays of logits and boxes
    memory: int | None  # the process's peak in MiB


def _serve(subject: Subject, pipe: Connection) -> None:
    """Build the subject; then answer each request with a `Reply`, or once with an error text."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(subject.batch, 3, *subject.size, generator=generator)
    images = images.to(subject.device)
    try:
        with torch.inference_mode():
            run = BUILDERS[subject.name](subject)
            while pipe.recv():
                began = time.perf_counter()
                logits, boxes = (tensor.cpu() for tensor in run(images))
                took = time.perf_counter() - began
                answer = logits.numpy(), boxes.numpy()
                pipe.send(Reply(took, answer, peak_memory(subject.device)))
    except Exception as error:  # torch, compilers and peers raise many kinds of errors
        lines = str(error).strip().splitlines() or [""]
        pipe.send(f"{type(error).__name__}: {lines[0]}")


def peak_memory(device: str) -> int | None:
    """Return the peak MiB of the GPU, or of this process where the system reports it.

    (`getrusage` would include the memory that the parent held when it started this process.)
    """
    if device != "cpu":
        return torch.cuda.max_memory_reserved() // 2**20
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 2**10 for line in lines if "VmHWM" in line), None)


class Worker:
    """A subject's process. CommandFailed if it fails, TimeoutError if it takes too long."""

    def __init__(self, subject: Subject):
        say_progress(f"starting {subject.name}: {subject.model} in {subject.precision}")
        context = multiprocessing.get_context("spawn")
        self.subject = subject
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(subject, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def warm_up(self, limit: float | None = None) -> Answer:
        """Wait until the subject has compiled and recorded everything, and return its answer.

        TimeoutError after `limit` seconds.
        """
        end = None if limit is None else time.monotonic() + limit
        for _ in range(WARM_UP if self.subject.device == "cpu" else GPU_WARM_UP):
            reply = self.request(None if end is None else end - time.monotonic())
        logits, boxes = map(torch.from_numpy, reply.answer)
        return logits, boxes

    def request(self, limit: float | None = None) -> Reply:
        """Run the subject once."""
        name = f"{self.subject.name} ({self.subject.precision})"
        try:
            self.pipe.send(True)
            if limit is not None and not self.pipe.poll(max(limit, 0.0)):
                raise TimeoutError(f"{name} was not ready in time")
            reply = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise CommandFailed(f"the process of {name} ended") from error
        if isinstance(reply, str):
            raise CommandFailed(f"{name} failed: {reply}")
        assert isinstance(reply, Reply)
        return reply

    def seconds(self) -> float:
        return self.request().seconds

    def memory(self) -> int | None:
        """Return the process's peak in MiB, after one more run."""
        return self.request().memory

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


def has_peer(model: str) -> bool:
    """Whether transformers has this model too."""
    return model in VARIANTS


def error_of_answer(found: Answer, expected: Answer, model: str) -> float:
    """Return the largest difference of logits or boxes, as a share of the largest of them.

    For a two-stage model each expected query is compared with the nearest found query, and the
    median of their differences counts: rounding changes which proposals become queries, and in
    which order, where their scores are nearly equal.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in found):
        return float("nan")
    if not set_config(model).two_stage:
        pairs = zip(found, expected, strict=True)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    ours, theirs = (
        torch.cat([a / b.abs().max() for a, b in zip(answer, expected, strict=True)], dim=-1)
        for answer in (found, expected)
    )
    distances = torch.cdist(theirs, ours, p=float("inf"))  # (B, Q, Q)
    return float(distances.amin(dim=2).median())
