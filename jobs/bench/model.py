"""`detr-batch bench model`: whole detectors, beside what else runs Deformable DETR.

The published models run with random weights, the same in all subjects. The packaged model, which no
one else has, runs with its own beside itself in fp32, and its AP is measured too.
"""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from jobs.bench.measure import Measurement, interleaved, milliseconds
from jobs.bench.peers import VARIANTS, peer, save_peer
from jobs.train import evaluate
from jobs.train_data import HeldOutScenes
from model.cuda_graphs import RECORD_AT, Graphed
from model.host_memory import keep_freed_memory
from model.zoo import create_model, named_model

Answer = tuple[Tensor, Tensor]  # logits and boxes
Way = tuple[str, str]  # a name of BUILDERS, and a precision
OURS, PEER, COMPILED = "detr-batch", "transformers", "transformers, compiled"
AP_SCENES = 100
WARM_UP, GPU_WARM_UP = 2, RECORD_AT + 1  # requests
# On random weights, as a share of the largest logit: bf16 has 8 bits.
TOLERANCES = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.1}


@dataclass(frozen=True)
class Subject:
    """One way to run the model, in a process of its own."""

    name: str  # as in BUILDERS
    precision: str  # "fp32", "bf16", "fp16", or of transformers also "bf16 autocast"
    model: str
    weights: Path | None  # transformers' layout; None: the model's own
    size: tuple[int, int]  # rows and columns of the pictures
    batch: int
    device: str


def _ours(subject: Subject) -> Callable[[Tensor], Answer]:
    if subject.device == "cpu":
        keep_freed_memory()  # as detectors do
    weights = None if subject.weights is None else str(subject.weights)
    net = create_model(subject.model, weights, subject.device, subject.precision)

    def forward(pictures: Tensor) -> Tensor:
        out = net(pictures)
        return torch.cat((out.pred_logits, out.pred_boxes), dim=-1)

    on_gpu = subject.device != "cpu"
    recorded = Graphed(forward, net.kept_positions) if on_gpu else forward  # as detectors do

    def run(pictures: Tensor) -> Answer:
        both = recorded(pictures)
        return both[..., :-4], both[..., -4:]

    return run


def _transformers(subject: Subject, compiled: bool = False) -> Callable[[Tensor], Answer]:
    """As it comes for fp32; else with channels last, in bf16 weights or under autocast."""
    net: Any = peer(subject.model).to(subject.device)
    faster = subject.precision != "fp32"
    dtype = torch.bfloat16 if subject.precision == "bf16" else torch.float32
    order = torch.channels_last if faster else torch.contiguous_format
    net = net.to(dtype, memory_format=order)
    if compiled:
        from torch._inductor import config

        config.compile_threads = 1  # no processes that this one would leave behind
    mode = "default" if subject.device == "cpu" else "reduce-overhead"  # CUDA graphs, as ours
    forward: Any = torch.compile(net, mode=mode) if compiled else net

    def run(pictures: Tensor) -> Answer:
        autocast = subject.precision == "bf16 autocast"
        with torch.autocast(subject.device, torch.bfloat16, enabled=autocast):
            out = forward(pixel_values=pictures.to(dtype, memory_format=order))
        return out.logits.float(), out.pred_boxes.float()

    return run


def _openvino(subject: Subject) -> Callable[[Tensor], Answer]:
    """transformers' model, converted; its precision as the hardware has it."""
    import openvino

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net: Any = peer(subject.model)

        def forward(self, pictures: Tensor) -> Answer:
            out = self.net(pixel_values=pictures)
            return out.logits, out.pred_boxes

    example = torch.zeros(subject.batch, 3, *subject.size)
    converted = openvino.convert_model(Plain().eval(), example_input=example)
    compiled = openvino.compile_model(
        converted, "CPU", {"INFERENCE_PRECISION_HINT": subject.precision.replace("fp", "f")}
    )

    def run(pictures: Tensor) -> Answer:
        logits, boxes = compiled(pictures.numpy()).values()
        return torch.from_numpy(logits), torch.from_numpy(boxes)

    return run


BUILDERS: dict[str, Callable[[Subject], Callable[[Tensor], Answer]]] = {
    OURS: _ours,
    PEER: _transformers,
    COMPILED: partial(_transformers, compiled=True),
    "openvino": _openvino,
}


def _serve(subject: Subject, pipe: Connection) -> None:
    """Build the subject; then answer each request with (seconds, answer, peak memory in MiB)."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(subject.batch, 3, *subject.size, generator=generator)
    pictures = pictures.to(subject.device)
    with torch.inference_mode():
        run = BUILDERS[subject.name](subject)
        while pipe.recv():
            began = time.perf_counter()
            logits, boxes = (tensor.cpu() for tensor in run(pictures))
            took = time.perf_counter() - began
            pipe.send((took, logits.numpy(), boxes.numpy(), _peak_memory(subject.device)))


def _peak_memory(device: str) -> int | None:
    """MiB of the GPU, or of this process where the system says so.

    (`getrusage` would count what the parent held when it started this process.)
    """
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) // 2**20
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) // 2**10 for line in lines if "VmHWM" in line), None)


class Worker:
    """A subject's process. RuntimeError where it ends."""

    def __init__(self, subject: Subject):
        context = multiprocessing.get_context("spawn")
        self.subject = subject
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(subject, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def warm_up(self) -> Answer:
        """Wait until it is ready, with all that it compiles and records; its answer."""
        for _ in range(WARM_UP if self.subject.device == "cpu" else GPU_WARM_UP):
            _, logits, boxes, _ = self.request()
        return torch.from_numpy(logits), torch.from_numpy(boxes)

    def request(self) -> tuple[float, Any, Any, int | None]:
        try:
            self.pipe.send(True)
            answer: tuple[float, Any, Any, int | None] = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(
                f"the process of {self.subject.name} ({self.subject.precision}) ended"
            ) from error
        return answer

    def seconds(self) -> float:
        return self.request()[0]

    def memory(self) -> int | None:
        """Its peak in MiB, after one more run."""
        return self.request()[3]

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


def ways(model: str, precision: str, device: str) -> list[Way]:
    """What can run here: names of BUILDERS, each with its precision. The first is the reference."""
    if model not in VARIANTS:
        return list(dict.fromkeys([(OURS, "fp32"), (OURS, precision)]))
    found = [(PEER, "fp32"), (OURS, precision)]
    if precision != "fp32":
        found += [(PEER, "bf16"), (PEER, "bf16 autocast")]
    if _can_compile(device):
        found.append((COMPILED, "fp32" if precision == "fp32" else "bf16 autocast"))
    if device == "cpu" and find_spec("openvino") is not None:
        found.append(("openvino", "fp32" if precision == "fp32" else "bf16"))
    return found


def _can_compile(device: str) -> bool:
    """Whether torch.compile has the compiler that it needs: of C++ on CPUs, of C beside Triton."""
    kinds = ("g++", "clang++", "c++") if device == "cpu" else ("gcc", "clang", "cc")
    return any(map(which, kinds)) and (device == "cpu" or find_spec("triton") is not None)


def bench_model(
    model: str, size: tuple[int, int], batch: int, precision: str, device: str, seconds: float
) -> list[Measurement]:
    """Compare answers with the reference's, then time all subjects in turn.

    `size` is rows and columns, `precision` "fp32", "bf16" or "fp16". RuntimeError, and no times,
    where ours differ.
    """
    chosen = ways(model, precision, device)
    workers: dict[Way, Worker] = {}
    try:
        with TemporaryDirectory() as folder:
            weights = Path(folder, "peer.safetensors") if model in VARIANTS else None
            if weights:
                save_peer(model, weights)
            for way in chosen:
                workers[way] = Worker(Subject(*way, model, weights, size, batch, device))
            answers = {way: worker.warm_up() for way, worker in workers.items()}
        expected = answers[chosen[0]]
        matched = named_model(model).config().two_stage
        errors = {way: _error(answer, expected, matched) for way, answer in answers.items()}
        wrong = errors[OURS, precision]
        if not wrong <= TOLERANCES[precision]:
            raise RuntimeError(f"{OURS} is wrong by {wrong:.2g}: nothing is timed")
        took = interleaved({way: worker.seconds for way, worker in workers.items()}, seconds)
        memory = {way: worker.memory() for way, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.stop()
    return [
        Measurement(
            benchmark="model",
            case=f"{model}, {size[0]} x {size[1]}",
            subject=way[0],
            batch=batch,
            precision=way[1],
            **(spread := milliseconds(took[way])),
            images_per_second=1e3 * batch / spread["p50_ms"],
            peak_memory_mib=memory[way],
            error=errors[way],
            ap=None if model in VARIANTS else scenes_ap(model, way[1], device),
        )
        for way in chosen
    ]


def scenes_ap(model: str, precision: str, device: str) -> float:
    """AP of a packaged model on AP_SCENES held-out scenes."""
    net = create_model(model, device=device, precision=precision)
    return evaluate(net, HeldOutScenes(AP_SCENES, net.config.resize), device)["AP"]


def _error(found: Answer, expected: Answer, matched: bool) -> float:
    """The largest difference of logits or of boxes, as a share of the largest of them.

    `matched`: each expected query beside the found one that is nearest to it, and the median of
    their differences: rounding changes which proposals of two stages become queries, and in which
    order, where they score nearly alike.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in found):
        return float("nan")
    if not matched:
        pairs = zip(found, expected, strict=True)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    ours, theirs = (
        torch.cat([a / b.abs().max() for a, b in zip(answer, expected, strict=True)], dim=-1)
        for answer in (found, expected)
    )
    distances = torch.cdist(theirs, ours, p=float("inf"))  # (B, Q, Q)
    return float(distances.amin(dim=2).median())
