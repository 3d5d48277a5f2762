"""`detr-batch bench model`: whole detectors, beside what else runs Deformable DETR."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from jobs.measure import Measurement, interleaved, milliseconds
from jobs.peers import peer, save_peer
from model.host_memory import keep_freed_memory
from model.zoo import create_model

Answer = tuple[Tensor, Tensor]  # logits and boxes
OURS, PEER = "detr-batch", "transformers"
# On random weights, as a share of the largest logit: bf16 has 8 bits.
TOLERANCES = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.1}


@dataclass(frozen=True)
class Subject:
    """One way to run the model, in a process of its own."""

    name: str  # as in BUILDERS
    precision: str
    model: str
    weights: Path  # transformers' layout
    size: tuple[int, int]  # rows and columns of the pictures
    batch: int
    device: str


def _ours(subject: Subject) -> Callable[[Tensor], Answer]:
    if subject.device == "cpu":
        keep_freed_memory()  # as detectors do
    net = create_model(subject.model, str(subject.weights), subject.device, subject.precision)

    def run(pictures: Tensor) -> Answer:
        out = net(pictures)
        return out.pred_logits, out.pred_boxes

    return run


def _transformers(subject: Subject, faster: str = "") -> Callable[[Tensor], Answer]:
    """As it comes, or `faster`: "bf16" weights or "autocast", with channels last."""
    net: Any = peer(subject.model).to(subject.device)
    dtype = torch.bfloat16 if faster == "bf16" else torch.float32
    net = net.to(dtype)
    order = torch.channels_last if faster else torch.contiguous_format
    net = net.to(memory_format=order)

    def run(pictures: Tensor) -> Answer:
        with torch.autocast(subject.device, torch.bfloat16, enabled=faster == "autocast"):
            out = net(pixel_values=pictures.to(dtype, memory_format=order))
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
    "transformers, bf16": partial(_transformers, faster="bf16"),
    "transformers, autocast": partial(_transformers, faster="autocast"),
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
    """A subject's process, warmed up. RuntimeError where it ends."""

    def __init__(self, subject: Subject):
        context = multiprocessing.get_context("spawn")
        self.subject = subject
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(subject, theirs), daemon=True)
        self.process.start()
        theirs.close()
        for _ in range(2):
            _, logits, boxes, _ = self.request()
        self.answer = torch.from_numpy(logits), torch.from_numpy(boxes)

    def request(self) -> tuple[float, Any, Any, int | None]:
        try:
            self.pipe.send(True)
            answer: tuple[float, Any, Any, int | None] = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f"the process of {self.subject.name} ended") from error
        return answer

    def seconds(self) -> float:
        return self.request()[0]

    def memory(self) -> int | None:
        """Its peak in MiB, after one more run."""
        return self.request()[3]

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


def ways(precision: str, device: str) -> list[tuple[str, str]]:
    """The subjects that can run here, each with its precision; transformers as it comes first."""
    found = [(PEER, "fp32"), (OURS, precision)]
    if precision != "fp32":
        found += [("transformers, bf16", "bf16"), ("transformers, autocast", "bf16")]
    if device == "cpu" and find_spec("openvino") is not None:
        found.append(("openvino", "fp32" if precision == "fp32" else "bf16"))
    return found


def bench_model(
    model: str, size: tuple[int, int], batch: int, precision: str, device: str, seconds: float
) -> list[Measurement]:
    """Compare answers with transformers' in fp32, then time all subjects in turn.

    `size` is rows and columns, `precision` "fp32", "bf16" or "fp16". RuntimeError, and no times,
    where ours differ.
    """
    chosen = ways(precision, device)
    workers: list[Worker] = []
    try:
        with TemporaryDirectory() as folder:
            weights = Path(folder, "peer.safetensors")
            save_peer(model, weights)
            for name, kind in chosen:
                workers.append(Worker(Subject(name, kind, model, weights, size, batch, device)))
        by_name = {worker.subject.name: worker for worker in workers}
        errors = {name: _error(w.answer, by_name[PEER].answer) for name, w in by_name.items()}
        if not errors[OURS] <= TOLERANCES[precision]:
            raise RuntimeError(f"{OURS} is wrong by {errors[OURS]:.2g}: nothing is timed")
        took = interleaved({name: worker.seconds for name, worker in by_name.items()}, seconds)
        memory = {name: worker.memory() for name, worker in by_name.items()}
    finally:
        for worker in workers:
            worker.stop()
    return [
        Measurement(
            benchmark="model",
            case=f"{model}, {size[0]} x {size[1]}",
            subject=name,
            batch=batch,
            precision=kind,
            **(spread := milliseconds(took[name])),
            images_per_second=1e3 * batch / spread["p50_ms"],
            peak_memory_mib=memory[name],
            error=errors[name],
        )
        for name, kind in chosen
    ]


def _error(found: Answer, expected: Answer) -> float:
    """The largest difference of logits or of boxes, as a share of the largest of them."""
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
