"""Our detector in turn with other software for the same model, and with another model."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from jobs.bench.detectors import (
    COMPILED,
    FASTER_RCNN,
    GRAPH,
    MAX_AUTOTUNE,
    OURS,
    PEER,
    REDUCE_OVERHEAD,
    Answer,
    Subject,
    Worker,
    error_of_answer,
)
from jobs.bench.gpu.context import Absent, Context
from jobs.bench.gpu.gates import Gate, refuse_wrong, weights_of
from jobs.bench.gpu.rates import SIZE, TINY_SIZE
from jobs.bench.measure import interleaved

SECONDS = 2.0  # for a peer and ours together, in turn
AUTOCAST = "bf16 autocast"
# Each peer has a share of the time left; a peer that is not ready by then is given up.
PEERS = (
    (PEER, AUTOCAST, 0.2),
    (PEER, "TF32", 0.2),
    (PEER, "fp32", 0.2),
    (GRAPH, AUTOCAST, 0.2),
    (FASTER_RCNN, AUTOCAST, 0.2),
    (FASTER_RCNN, "TF32", 0.2),
)
COMPILED_PEERS = (  # each takes minutes
    (COMPILED, AUTOCAST, 0.5),
    (REDUCE_OVERHEAD, AUTOCAST, 0.5),
    (MAX_AUTOTUNE, AUTOCAST, 0.5),
)
TINY_PEERS = ((PEER, AUTOCAST), (FASTER_RCNN, "TF32"))


@dataclass(frozen=True)
class Case:
    """A model and a batch size, at which ours and its peers are timed."""

    model: str
    batch: int

    def __str__(self) -> str:
        return f"{self.model}, batch {self.batch}"


def run(context: Context) -> None:
    """Time each peer in turn with ours, which stays ready for the next; the quick peers first."""
    chosen = [Case("deformable-detr-single-scale", 1)] if context.tiny else [
        Case("deformable-detr", 8),
        Case("deformable-detr-single-scale", 8),
    ]  # fmt: skip
    for case, peers in ((case, peers) for peers in (PEERS, COMPILED_PEERS) for case in chosen):
        wanted = [one for one in peers if not context.tiny or one[:2] in TINY_PEERS]
        if all(_name(case, *one[:2]) in context.finished for one in wanted):
            continue
        with context.case(f"{case}, {OURS}"):
            refuse_wrong(context, Gate(case.model, "bf16", False))
            with TemporaryDirectory() as folder:
                _time_peers(context, case, wanted, Path(folder))


def _name(case: Case, name: str, precision: str) -> str:
    return f"{case}, {name}, {precision}"


def _time_peers(
    context: Context, case: Case, wanted: list[tuple[str, str, float]], folder: Path
) -> None:
    if find_spec("transformers") is None or find_spec("timm") is None:
        raise Absent("transformers or timm is not installed: pip install '.[bench]'")
    weights = weights_of(case.model, folder)
    assert weights is not None
    ours = Subject(
        OURS,
        "bf16",
        case.model,
        Path(weights),
        TINY_SIZE if context.tiny else SIZE,
        case.batch,
        context.device,
        compile_threads=os.cpu_count() or 1,
    )
    left = [one for one in wanted if _name(case, *one[:2]) not in context.finished]
    with ExitStack() as stack:
        # All processes load at once, and do nothing on the device before the first request.
        truth, own, *peers = (
            stack.enter_context(_started(replace(ours, name=name, precision=precision)))
            for name, precision in [(PEER, "fp32"), (OURS, "bf16"), *(one[:2] for one in left)]
        )
        expected = truth.warm_up(context.seconds_left())
        truth.stop()
        error = error_of_answer(own.warm_up(context.seconds_left()), expected, case.model)
        for peer, (name, precision, share) in zip(peers, left, strict=True):
            with context.case(_name(case, name, precision)):
                answer = peer.warm_up(share * context.seconds_left())
                _time_in_turn(context, case, (own, error), peer, answer, expected)
            peer.stop()


@contextmanager
def _started(subject: Subject) -> Iterator[Worker]:
    """Start a subject's process, and stop it when the block ends, if not before."""
    worker = Worker(subject)
    try:
        yield worker
    finally:
        worker.stop()


def _time_in_turn(
    context: Context,
    case: Case,
    ours: tuple[Worker, float],
    peer: Worker,
    answer: Answer,
    expected: Answer,
) -> None:
    """Time a peer in turn with ours, which comes with its error; both get a row."""
    subject = peer.subject
    error = 0.0
    if subject.name != FASTER_RCNN:
        error = error_of_answer(answer, expected, case.model)
    workers = {OURS: ours[0], subject.name: peer}
    seconds = 0.0 if context.tiny else SECONDS
    took = interleaved({name: one.seconds for name, one in workers.items()}, seconds)
    label = _name(case, subject.name, subject.precision)
    for key, worker, wrong in ((f"{label}: ours", ours[0], ours[1]), (label, peer, error)):
        context.write_timing(
            key,
            worker.subject.name,
            case.batch,
            worker.subject.precision,
            took[worker.subject.name],
            images=case.batch,
            row_case=f"{case.model}, {subject.size[0]} x {subject.size[1]}",
            memory=worker.memory(),
            error=wrong,
            beside=f"{subject.name}, {subject.precision}",
        )
