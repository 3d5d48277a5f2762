"""CUDA graphs: the work of a GPU is recorded once per shape and then started by one call.

A forward pass of the detector starts hundreds of kernels, and each start costs the host
microseconds. With small batches this takes longer than the computation. A recording costs some
passes and memory. Batches have few forms, so each is recorded once, when it occurs again.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

RECORD_AT = 2  # a shape is recorded at its second pass
EAGER, RECORDED, REPLAYED = "eager", "recorded", "replayed"  # kinds of passes
WARM_UP = 2  # passes before a recording, in which libraries choose algorithms and caches fill

T = TypeVar("T")
Arguments = tuple[Tensor | None, ...]
Key = tuple[Any, ...]


def key_of(arguments: Arguments) -> Key:
    """The shapes and dtypes of the arguments. A recording is valid for one key."""
    return tuple(None if a is None else (tuple(a.shape), a.dtype) for a in arguments)


def record(
    function: Callable[[], T], pool: Any = None, beside: torch.cuda.Stream | None = None
) -> tuple[torch.cuda.CUDAGraph, T]:
    """Record the work of `function` on the current GPU. Returns the graph and the result.

    Each replay of the graph writes the result again. The graph takes its memory from `pool`, a
    memory pool of torch, or from a pool of its own. The passes before it run on the stream
    `beside`: each stream costs a workspace of cuBLAS, which is never freed.
    """
    beside = beside or torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # During the recording another thread may stack images in page-locked memory or wait for boxes.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = function()
    return graph, result


@dataclass(frozen=True)
class Recording:
    """A graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    arguments: Arguments
    result: Tensor
    held: object  # tensors that the function caches by shape and might free before the graph


class Graphed:
    """A function of tensors on one GPU, which is replayed from a recording when a shape repeats.

    The function must not wait for the device, and its control flow must not depend on the values of
    tensors. Its result is valid until the next call on the same stream. Only one call may run at a
    time. `held` returns the tensors that the function keeps between calls. They must stay alive,
    because a graph refers to memory by address.
    """

    def __init__(self, function: Callable[..., Tensor], held: Callable[[], object]):
        self.function, self.held = function, held
        self.seen: Counter[Key] = Counter()
        self.recordings: dict[Key, Recording] = {}
        self.pool: Any = None  # all recordings share it
        self.beside: torch.cuda.Stream | None = None
        self.passes: Counter[str] = Counter()  # EAGER, RECORDED and REPLAYED ones so far

    def __call__(self, *arguments: Tensor | None) -> Tensor:
        """The result of the function for the arguments."""
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
        for theirs, given in zip(recording.arguments, arguments, strict=True):
            if theirs is not None and given is not None:
                theirs.copy_(given)
        recording.graph.replay()
        return recording.result

    def _record(self, key: Key, arguments: Arguments) -> Recording:
        own = tuple(None if argument is None else argument.clone() for argument in arguments)
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        self.beside = self.beside or torch.cuda.Stream()
        graph, result = record(lambda: self.function(*own), self.pool, self.beside)
        recording = self.recordings[key] = Recording(graph, own, result, self.held())
        return recording

    def forget(self) -> None:
        """Delete all recordings and free their memory."""
        self.recordings.clear()
        self.seen.clear()
        self.pool = None
        torch.cuda.empty_cache()
