"""`detr-batch bench model`: whole detectors, beside other software that runs Deformable DETR.

The published models run with random weights, the same in all subjects. The packaged model has no
peer. It runs with its own weights beside itself in fp32, and its AP is measured too.
"""

from importlib.util import find_spec
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

from jobs.bench.detectors import (
    COMPILED,
    OPENVINO,
    OURS,
    PEER,
    REDUCE_OVERHEAD,
    TOLERANCES,
    Subject,
    Worker,
    error_of_answer,
    has_peer,
)
from jobs.bench.measure import Measurement, Wrong, interleaved, milliseconds
from jobs.bench.peers import save_peer
from model.zoo import create_model

Way = tuple[str, str]  # a name of BUILDERS, and a precision
AP_SCENES = 100


def ways(model: str, precision: str, device: str) -> list[Way]:
    """List what can run here: names of BUILDERS with precisions. The first is the reference."""
    if not has_peer(model):
        return list(dict.fromkeys([(OURS, "fp32"), (OURS, precision)]))
    found = [(PEER, "fp32"), (OURS, precision)]
    if precision != "fp32":
        found += [(PEER, "bf16"), (PEER, "bf16 autocast")]
    if _can_compile(device):
        # CUDA graphs, as our detector uses
        compiled = COMPILED if device == "cpu" else REDUCE_OVERHEAD
        found.append((compiled, "fp32" if precision == "fp32" else "bf16 autocast"))
    if device == "cpu" and find_spec("openvino") is not None:
        found.append((OPENVINO, "fp32" if precision == "fp32" else "bf16"))
        if find_spec("nncf") is not None:
            found.append((OPENVINO, "int8"))
    return found


def _can_compile(device: str) -> bool:
    """Whether torch.compile has the compiler that it needs.

    That is one for C++ on CPUs, and one for C beside Triton on GPUs.
    """
    kinds = ("g++", "clang++", "c++") if device == "cpu" else ("gcc", "clang", "cc")
    return any(map(which, kinds)) and (device == "cpu" or find_spec("triton") is not None)


def bench_model(
    model: str, size: tuple[int, int], batch: int, precision: str, device: str, seconds: float
) -> list[Measurement]:
    """Compare all answers with the reference's, then time all subjects in turn.

    `size` is rows and columns; `precision` is "fp32", "bf16" or "fp16". Wrong, without any times,
    if our answers differ.
    """
    chosen = ways(model, precision, device)
    workers: dict[Way, Worker] = {}
    try:
        with TemporaryDirectory() as folder:
            weights = Path(folder, "peer.safetensors") if has_peer(model) else None
            if weights:
                save_peer(model, weights)
            for way in chosen:
                workers[way] = Worker(Subject(*way, model, weights, size, batch, device))
            answers = {way: worker.warm_up() for way, worker in workers.items()}
        expected = answers[chosen[0]]
        errors = {way: error_of_answer(answer, expected, model) for way, answer in answers.items()}
        wrong = errors[OURS, precision]
        if not wrong <= TOLERANCES[precision]:
            raise Wrong(f"{OURS} is wrong by {wrong:.2g}: nothing is timed")
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
            ap=None if has_peer(model) else scenes_ap(model, way[1], device),
        )
        for way in chosen
    ]


def scenes_ap(model: str, precision: str, device: str) -> float:
    """Compute the AP of a packaged model on AP_SCENES held-out scenes."""
    from jobs.train.data import HeldOutScenes
    from jobs.train.train import (
        evaluate,  # it needs DuckDB and pycocotools, which other benches do not
    )

    net = create_model(model, device=device, precision=precision)
    return evaluate(net, HeldOutScenes(AP_SCENES, net.config.resize), device)["AP"]
