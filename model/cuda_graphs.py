"""CUDA graphs: what a GPU is to do, recorded once for each shape and started by one call.

A forward pass of the detector starts hundreds of kernels, each of which costs the host
microseconds; at small batches that takes longer than the computation. A recording costs some passes
and memory, so shapes are recorded when they come again, and few are kept.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

RECORD_AT = 3  # the time that a shape comes
KEPT = 24  # recordings; all share one pool of memory
EAGER, RECORDED, REPLAYED = "eager", "recorded", "replayed"  # kinds of passes
WARM_UP = 2  # passes before a recording: libraries choose their algorithms, caches fill

T = TypeVar("T")
Arguments = tuple[Tensor | None, ...]
Key = tuple[Any, ...]


def key_of(arguments: Arguments) -> Key:
    """Shapes and dtypes: what a recording holds for."""
    return tuple(None if a is None else (tuple(a.shape), a.dtype) for a in arguments)


def record(function: Callable[[], T], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, T]:
    """What `function` asks of the current GPU, and its result, which each replay writes anew.

    The memory is that of a `pool` of torch's, or of one for this graph alone.
    """
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # Another thread may stack pictures in page-locked memory, or wait for boxes, meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = function()
    return graph, result


@dataclass(frozen=True)
class Recording:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    arguments: Arguments
    result: Tensor
    held: object  # what the function keeps by shape, and might drop before the graph


class Graphed:
    """A function of tensors on one GPU, replayed from recordings where its shapes come again.

    The function must neither wait for the device nor depend on what tensors hold. Its result is
    valid until the next call on the same stream; one call at a time. `held` gives the tensors that
    the function keeps between calls: a graph knows memory by address alone.
    """

    def __init__(self, function: Callable[..., Tensor], held: Callable[[], object]):
        self.function, self.held = function, held
        self.seen: Counter[Key] = Counter()
        self.recordings: OrderedDict[Key, Recording] = OrderedDict()
        self.pool: Any = None
        self.passes: Counter[str] = Counter()  # EAGER, RECORDED and REPLAYED ones so far

    def __call__(self, *arguments: Tensor | None) -> Tensor:
        """The function's result."""
        key = key_of(arguments)
        recording = self.recordings.get(key)
        if recording is None:
            self.seen[key] += 1
            if self.seen[key] < RECORD_AT:
                self.passes[EAGER] += 1
                return self.function(*arguments)
            recording = self._record(key, arguments)
            self.passes[RECORDED] += 1
        else:
            self.passes[REPLAYED] += 1
        self.recordings.move_to_end(key)
        for theirs, given in zip(recording.arguments, arguments, strict=True):
            if theirs is not None and given is not None:
                theirs.copy_(given)
        recording.graph.replay()
        return recording.result

    def _record(self, key: Key, arguments: Arguments) -> Recording:
        while len(self.recordings) >= KEPT:
            self.recordings.popitem(last=False)
        own = tuple(None if argument is None else argument.clone() for argument in arguments)
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        graph, result = record(lambda: self.function(*own), self.pool)
        recording = self.recordings[key] = Recording(graph, own, result, self.held())
        return recording

    def forget(self) -> None:
        """Give the memory of all recordings back."""
        self.recordings.clear()
        self.seen.clear()
        self.pool = None
        torch.cuda.empty_cache()
