"""Where a detector's time goes, part by part, beside the least time that the device needs.

An operation's bound is the longer of two times: that of its arithmetic at the measured rate of
products, and that of reading its arguments and writing its results once at the measured rate of
copies. A part's bound is the sum over its operations.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_flop_count

from model.deformable_detr import DeformableDetr

PREFIX = "part: "
PIXELS, STEM, PYRAMID, ENCODER, DECODER, HEADS = (
    "pixels and boxes",
    "stem",
    "pyramid",
    "encoder's products",
    "decoder",
    "heads",
)
ATTENTION, NORMS = "attention", "norms"
STAGES = ("layer1", "layer2", "layer3", "layer4")
PARTS = (PIXELS, STEM, *STAGES, PYRAMID, ENCODER, ATTENTION, NORMS, DECODER, HEADS)
Name = str


@dataclass
class Part:
    """Sums over the operations of a part."""

    milliseconds: float = 0.0  # time on the device; on CPUs on the host
    compute_ms: float = 0.0  # time of its arithmetic, at the rate of products
    memory_ms: float = 0.0  # time of its reads and writes, at the rate of copies
    bound_ms: float = 0.0


def measure_parts(
    net: DeformableDetr,
    run: Callable[[], object],
    device: str,
    ceilings: dict[str, float],
    timed: bool = True,
) -> dict[Name, Part]:
    """Count what each operation of a run computes and moves; if `timed`, profile another run.

    `ceilings` are TFLOP/s by precision, and GB/s as "copy".
    """
    parts = {name: Part() for name in PARTS}
    with _labelled(net) as labels:
        for name, seconds in _profiled(run, device) if timed else ():
            parts[name].milliseconds += seconds * 1e3
        with Traffic(labels) as traffic:
            run()
    for name, dtype, operations, size in traffic.found:
        part = parts[name]
        compute = operations / (_rate_of_products(dtype, ceilings) * 1e9)
        memory = size / (ceilings["copy"] * 1e6)
        part.compute_ms += compute
        part.memory_ms += memory
        part.bound_ms += max(compute, memory)
    return parts


def _rate_of_products(dtype: torch.dtype, ceilings: dict[str, float]) -> float:
    """Return TFLOP/s. GPUs multiply int8 twice as fast as bf16, by their data sheets."""
    if dtype == torch.int8:
        return 2 * ceilings["bf16"]
    return ceilings[{torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")]


@contextmanager
def _labelled(net: DeformableDetr) -> Iterator[list[Name]]:
    """Name the running part for the profiler, and as the last entry of the yielded list."""
    labels: list[Name] = []
    body: Any = net.backbone[0].body
    modules: list[tuple[nn.Module, Name]] = [(net.transformer.encoder, ENCODER)]
    modules += [(head, HEADS) for head in {*net.class_embed, *net.bbox_embed}]
    for index, stage in enumerate(
        getattr(body, "stages", None) or [getattr(body, s) for s in STAGES]
    ):
        modules += [(block, STAGES[index]) for block in stage]
    modules.append((body.conv1, STEM))
    with ExitStack() as stack:
        for module, name in modules:
            stack.enter_context(_replaced(module, "forward", name, labels))
        if hasattr(body.conv1, "relu_pool"):
            stack.enter_context(_replaced(body.conv1, "relu_pool", STEM, labels))
        stack.enter_context(_replaced(net, "pyramid", PYRAMID, labels))
        stack.enter_context(_replaced(net, "decode", DECODER, labels))
        yield labels


@contextmanager
def _replaced(owner: nn.Module, method: str, name: Name, labels: list[Name]) -> Iterator[None]:
    """Let a method of one object run under a label."""
    original = getattr(owner, method)

    def labelled(*arguments: Any, **options: Any) -> Any:
        labels.append(name)
        try:
            with record_function(PREFIX + name):
                return original(*arguments, **options)
        finally:
            labels.pop()

    setattr(owner, method, labelled)
    try:
        yield
    finally:
        delattr(owner, method)


def _part_of(label: Name, operation: str) -> Name:
    """Return the part of an operation; the encoder's own operations are split by their kind."""
    if label != ENCODER:
        return label
    if "ms_deform_attn" in operation:
        return ATTENTION
    if "linear_add_norm" in operation:  # a product that ends in a norm
        return ENCODER
    return NORMS if "norm" in operation else ENCODER


def _profiled(run: Callable[[], object], device: str) -> Iterator[tuple[Name, float]]:
    """Yield the part and seconds of each operation of one run; on a GPU the device's seconds."""
    on_gpu = device != "cpu"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    run()
    with profile(activities=activities) as profiler:
        run()
        if on_gpu:
            torch.cuda.synchronize(device)
    for event in profiler.events() or []:
        if event.device_type.name != "CPU" or event.name.startswith(PREFIX):
            continue
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        yield _part_of(*_label_and_operation(event)), microseconds / 1e6


def _label_and_operation(event: Any) -> tuple[Name, str]:
    """Return the label around an event, and the names of the operations below the label."""
    names = []
    while event is not None and not event.name.startswith(PREFIX):
        names.append(event.name)
        event = event.cpu_parent
    return PIXELS if event is None else event.name.removeprefix(PREFIX), " ".join(names)


class Traffic(TorchDispatchMode):
    """Records the part, precision, arithmetic and bytes of each operation."""

    def __init__(self, labels: list[Name]):
        super().__init__()
        self.labels = labels
        self.found: list[tuple[Name, torch.dtype, float, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = (
            [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
            for tree in ((args, kwargs), out)
        )
        if func._schema.is_mutable or not _moves_nothing(inputs, outputs):
            name = _part_of(self.labels[-1] if self.labels else PIXELS, str(func))
            dtype = torch.int8 if "_int8" in str(func) else (outputs or inputs)[0].dtype
            operations = operations_of(func, args, kwargs or {}, out)
            moved = {id(t): t for t in [*inputs, *outputs]}.values()
            # zero_padding_ writes the padding alone, which may be none.
            size = 0 if "zero_padding_" in str(func) else sum(map(_bytes, moved))
            self.found.append((name, dtype, operations, size))
        return out


def _moves_nothing(inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether an operation returns a view of its inputs, or memory that nobody has written yet."""
    if not inputs:
        return True
    held = {_storage(tensor) for tensor in inputs}
    return bool(outputs) and all(_storage(tensor) in held for tensor in outputs)


def _storage(tensor: Tensor) -> int:
    return 0 if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of reading a tensor once.

    Repeated elements of an expanded tensor count once.
    """
    size = tensor.numel() * tensor.element_size()
    return size if tensor.is_mkldnn else min(size, tensor.untyped_storage().nbytes())


def operations_of(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Count multiplications and additions, by torch's own formulas, else by ours below, else as 0.

    In inference mode layers are dispatched as a whole; torch's own formulas do not know these.
    """
    packet = func._overloadpacket
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=out))
    name = str(packet)
    if name == "aten.scaled_dot_product_attention":
        return float(sdpa_flop_count(*(argument.shape for argument in args[:3])))
    if name == "aten.conv2d" or "conv_add_relu" in name or "_convolution_pointwise" in name:
        x, weight = _convolved(name, args)
        return float(conv_flop_count(list(x.shape), list(weight.shape), list(out.shape)))
    if "_addmm_activation" in name:
        return 2.0 * args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
    if name == "aten.linear" or "_linear_pointwise" in name:
        return 2.0 * args[0].numel() * out.shape[-1]
    if "linear_add_norm" in name:
        return 2.0 * args[0].numel() * args[3].shape[-1]
    if "detr_batch.multiply_" in name:
        return 2.0 * args[0].numel() * len(args[2])
    if "detr_batch.ms_deform_attn" in name:  # four corners of each sample, weighted and summed
        return 2.0 * 4 * args[2].numel() * args[0].shape[3]
    return 0.0


def _convolved(name: str, args: Any) -> tuple[Tensor, Tensor]:
    """Return input and weight of a convolution; oneDNN's in-place binary takes the sum first."""
    return (args[1], args[2]) if "pointwise_" in name else (args[0], args[1])
