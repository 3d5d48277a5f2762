"""Whether the detector is right on this device. No step times a detector that is wrong."""

import atexit
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from jobs.bench.detectors import TOLERANCES, Answer, error_of_answer, has_peer
from jobs.bench.gpu.context import Absent, Context, Wrong
from jobs.bench.gpu.journal import VERDICT
from jobs.bench.gpu.poison import CPU_POISON, poison_memory
from model.deformable_detr import DeformableDetr
from model.ms_deform_attn import MSDeformAttn
from model.preprocess import normalize, stack_images
from model.resize import canvas_rule
from model.zoo import TRUNK_DTYPES, create_deformable_detr, prepare

TESTS = "tests of the model"
TESTS_BEHIND = 2  # models checked before the tests, which compile many kernels and may use all time
# The most important models first.
MODELS = (
    "deformable-detr",
    "deformable-detr-single-scale",
    "deformable-detr-with-box-refine-two-stage",
    "shapes-tiny",
    "deformable-detr-with-box-refine",
    "deformable-detr-single-scale-dc5",
)
PRECISIONS = ("bf16", "mixed", "int8", "fp16", "fp32")
TINY_PRECISIONS = ("fp32", "bf16", "mixed", "int8")
TINY_MODELS = ("shapes-tiny", "deformable-detr-single-scale")
Sizes = tuple[tuple[int, int], ...]
EXACT: Sizes = ((224, 320), (224, 320))
PADDED: Sizes = ((224, 320), (320, 192), (97, 223))
TIMES_TORCH = 3.0  # our rounding error may be this many times that of torch's own operations
UNITS = 2.0  # least tolerance, in units in the last place of the largest number
LOG = "tests.log"  # output of pytest, which is kept if time ends the tests


@dataclass(frozen=True)
class Gate:
    """A way to run a detector, which must be right before it is timed."""

    model: str
    precision: str
    padded: bool

    def __str__(self) -> str:
        return f"{self.model}, {self.precision}, {'padded' if self.padded else 'exact'}"


def run(context: Context) -> None:
    """Check each model in each precision; run the tests early, after a few models."""
    precisions = TINY_PRECISIONS if context.tiny else PRECISIONS
    for number, model in enumerate(TINY_MODELS if context.tiny else MODELS, start=1):
        gates = [
            Gate(model, precision, padded) for precision in precisions for padded in (False, True)
        ]
        for gate in gates:
            if str(gate) not in context.finished:
                with context.case(str(gate)):
                    _check(context, gate)
        if number == TESTS_BEHIND and TESTS not in context.finished:
            with context.case(TESTS):
                _run_tests(context)


def _run_tests(context: Context) -> None:
    """Run those files of tests/model/ that mention CUDA, beside memory full of NaN."""
    top = Path(__file__).parents[3]
    files = [str(f) for f in sorted((top / "tests/model").glob("*.py")) if '"cuda' in f.read_text()]
    if not files or find_spec("pytest") is None:
        raise Absent("the tests or pytest are not here: run this in a checkout of the project")
    if context.tiny:
        files = [file for file in files if file.endswith(("test_ranking.py", "test_predictor.py"))]
    command = [sys.executable, "-m", "pytest", "-p", "jobs.bench.gpu.poison"]
    command += ["-p", "no:cacheprovider", "-vv"]  # a line for each test
    if context.on_gpu and find_spec("xdist") is not None:
        command += ["--numprocesses", "4"]  # kernels are compiled in parallel
    environment = os.environ | ({} if context.on_gpu else CPU_POISON)
    path = context.folder / LOG
    with path.open("w") as log:
        done = subprocess.run(
            [*command, *files], cwd=top, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    summary = next((line.strip("= ") for line in reversed(lines) if "passed" in line), "")
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    context.write(TESTS, VERDICT, right=done.returncode == 0, summary=summary, failures=failures)


def refuse_wrong(context: Context, gate: Gate) -> float:
    """Return the detector's error in this way, by the journal or by a check now.

    Wrong if the detector is wrong.
    """
    own = Context("gates", context.folder, context.device, context.tiny, context.deadline)
    verdicts = [r for r in own.journal.records() if r["kind"] == VERDICT and r["step"] == "gates"]
    known = {record["case"]: record for record in verdicts}
    if str(gate) not in known:
        known[str(gate)] = _check(own, gate)
    error = float(known[str(gate)]["error"])
    if not known[str(gate)]["right"]:
        raise Wrong(f"{gate}: wrong by {error:.2g}, so nothing is timed")
    return error


def _check(context: Context, gate: Gate) -> dict[str, Any]:
    """Compare the detector with the truth, and write the verdict into the journal."""
    sizes = PADDED if gate.padded else EXACT
    poison_memory(context.device)
    with torch.inference_mode():
        found = _answer_in_batch(context, gate, sizes)
        poison_memory(context.device)
        truth = _peers_answers(gate.model, sizes, context.device, "fp32")
        error = _largest_error([_one(found, at) for at in range(len(sizes))], truth, gate.model)
        tolerance = _tolerance(context, gate, sizes, truth)
    verdict = {"right": bool(error <= tolerance), "error": error, "tolerance": tolerance}
    context.write(str(gate), VERDICT, **verdict)
    return verdict


def _largest_error(found: list[Answer], truth: list[Answer], model: str) -> float:
    """Return the largest error; NaN if one error is NaN."""
    errors = [error_of_answer(*pair, model) for pair in zip(found, truth, strict=True)]
    return float(torch.tensor(errors).max())


def _tolerance(context: Context, gate: Gate, sizes: Sizes, truth: list[Answer]) -> float:
    """Return a few times what torch itself rounds away in that precision, in the same model."""
    if gate.precision == "fp32":
        as_tf32 = context.on_gpu and torch.backends.cudnn.allow_tf32
        return TOLERANCES["TF32" if as_tf32 else "fp32"]
    rounded = _peers_answers(gate.model, sizes, context.device, gate.precision)
    least = UNITS * torch.finfo(TRUNK_DTYPES[gate.precision]).eps
    return max(least, TIMES_TORCH * _largest_error(rounded, truth, gate.model))


def _one(answer: Answer, index: int) -> Answer:
    logits, boxes = answer
    return logits[index : index + 1], boxes[index : index + 1]


def _images(sizes: Sizes) -> list[Tensor]:
    """Make smooth random images, as neighbouring pixels of photos are alike: (h, w, 3) uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(len(sizes), 3, 12, 12, generator=generator)
    return [
        (torch.nn.functional.interpolate(one[None], size, mode="bilinear")[0] * 255)
        .byte()
        .permute(1, 2, 0)
        .contiguous()
        for one, size in zip(coarse, sizes, strict=True)
    ]


def _answer_in_batch(context: Context, gate: Gate, sizes: Sizes) -> Answer:
    """Return the detector's answer for a batch, as the pipeline runs it."""
    net = _ours(gate.model, gate.precision, context.device)
    pixels, valid = stack_images(_images(sizes))
    if gate.padded:
        height, width = canvas_rule(net.config.resize).canvas(*pixels.shape[1:3])
        more = (0, 0, 0, width - pixels.shape[2], 0, height - pixels.shape[1])
        pixels = torch.nn.functional.pad(pixels, more)
    valid = None if valid is None else valid.to(context.device)
    out = net(normalize(pixels.to(context.device), valid, net.dtype), valid=valid)
    return out.pred_logits.float().cpu(), out.pred_boxes.float().cpu()


@lru_cache(maxsize=1)
def _ours(model: str, precision: str, device: str) -> DeformableDetr:
    net = create_deformable_detr(model, _weights(model), device, padding="invariant", training=True)
    return prepare(net, precision)


@lru_cache(maxsize=1)
def _weights(model: str) -> str | None:
    """Return the file of `weights_of`, which is removed when this process ends."""
    folder = TemporaryDirectory(prefix="detr-batch-weights-")
    atexit.register(folder.cleanup)
    return weights_of(model, Path(folder.name))


def weights_of(model: str, folder: Path) -> str | None:
    """Save random weights of the peer as a file; None if the model has its own weights."""
    if not has_peer(model):
        return None
    from jobs.bench.peers import save_peer

    save_peer(model, folder / "peer.safetensors")
    return str(folder / "peer.safetensors")


@cache
def _peers_answers(model: str, sizes: Sizes, device: str, precision: str) -> list[Answer]:
    """Compute the answers of torch's own operations for each image, in fp32 or under autocast.

    Each image runs alone; for "mixed" and "int8" the whole model is in the trunk's dtype. The fp32
    answers, without TF32, are the truth. The model is transformers'. Where transformers has none,
    it is our own as it is trained, with the formula of the attention.
    """
    dtype = TRUNK_DTYPES[precision]
    net = _peer(model, device)
    answers = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for image in _images(sizes):
            values = normalize(image[None].to(device), None).contiguous()
            with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                out = net(pixel_values=values)
            logits = out.logits if has_peer(model) else out.pred_logits
            answers.append((logits.float().cpu(), out.pred_boxes.float().cpu()))
    return answers


@lru_cache(maxsize=1)
def _peer(model: str, device: str) -> torch.nn.Module:
    if has_peer(model):
        from jobs.bench.peers import peer

        return peer(model).to(device)
    net = create_deformable_detr(model, training=True)
    for module in net.modules():
        if isinstance(module, MSDeformAttn):
            module.implementation = "reference"
    return net.to(device)
