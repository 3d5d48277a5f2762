"""How calls of operations grow with the images of a batch, learned from two counts of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

FEWER, MORE = 2, 3  # the counts at which the growth is learned
# These compute nothing, although their schemas do not mark a result as an alias of an argument.
COPIES = ("clone", "_to_copy", "copy_", "_unsafe_view", "dropout")
FACTORIES = ("empty", "new_", "zeros", "ones", "full", "arange", "scalar_tensor")

Function = Callable[[int], object]
"""A function of a number of images, of which the first are always the same."""
Leaf = tuple[int, ...] | int | None
"""The shape of a tensor, an integer, or None for any other value."""


@dataclass(frozen=True)
class Growth:
    """A tensor has `size` elements an image along `dimension`; an integer has `size` an image."""

    dimension: int
    size: int


@dataclass(frozen=True)
class Call:
    """An operation's name, and the leaves of its arguments and of its results."""

    name: str
    arguments: tuple[Leaf, ...]
    results: tuple[Leaf, ...]


@dataclass(frozen=True)
class Learned:
    """A call for FEWER images, and how each leaf grows; None for a leaf that does not grow.

    `clear` is false where the growth is not understood.
    """

    call: Call
    arguments: tuple[Growth | None, ...]
    results: tuple[Growth | None, ...]
    clear: bool

    @property
    def batched(self) -> bool:
        """Whether an argument grows with the images."""
        return any(growth is not None for growth in self.arguments)

    def arguments_at(self, count: int) -> tuple[Leaf, ...]:
        """Return the leaves of the arguments of the same call for `count` images."""
        return tuple(
            _grow_leaf(leaf, growth, count)
            for leaf, growth in zip(self.call.arguments, self.arguments, strict=True)
        )

    def fits(self, call: Call, count: int) -> bool:
        """Whether this is the call for `count` images; an unclear call is compared by name only."""
        if self.call.name != call.name:
            return False
        return not self.clear or self.arguments_at(count) == call.arguments


def _grow_leaf(leaf: Leaf, growth: Growth | None, count: int) -> Leaf:
    if growth is None or leaf is None:
        return leaf
    if isinstance(leaf, int):
        return growth.size * count
    return (*leaf[: growth.dimension], growth.size * count, *leaf[growth.dimension + 1 :])


@dataclass(frozen=True)
class Invocation:
    """A call with its tensors, which can be repeated with others."""

    function: Any  # torch's operation
    form: Any  # structure of the arguments, made from `leaves`
    leaves: list[Any]
    written: tuple[int, ...]  # indices of the leaves that the operation writes into

    @classmethod
    def from_arguments(
        cls, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> "Invocation":
        """Flatten the arguments."""
        leaves, form = tree_flatten((arguments, named))
        written: set[int] = set()
        for place, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = arguments[place] if place < len(arguments) else named.get(argument.name)
                written |= {id(leaf) for leaf in tree_flatten(given)[0] if leaf is not None}
        places = tuple(place for place, leaf in enumerate(leaves) if id(leaf) in written)
        return cls(function, form, leaves, places)

    def copy_written(self) -> "Invocation":
        """Return the same call, which writes into copies."""
        leaves = list(self.leaves)
        for place in self.written:
            leaves[place] = copy_with_strides(leaves[place])
        return replace(self, leaves=leaves)

    def run(self) -> tuple[Any, list[Tensor]]:
        """Make the call.

        Returns what the operation returns, and its results, those in written arguments first.
        """
        arguments, named = tree_unflatten(self.leaves, self.form)
        returned = self.function(*arguments, **named)
        results = [self.leaves[place] for place in self.written]
        for leaf in tree_flatten(returned)[0]:
            if isinstance(leaf, Tensor) and all(leaf is not written for written in results):
                results.append(leaf)
        return returned, results

    def describe(self, results: Sequence[Tensor] = ()) -> Call:
        """Describe the call without its tensors."""
        leaves = tuple(map(_leaf_of, self.leaves))
        return Call(str(self.function), leaves, tuple(map(_leaf_of, results)))


def _leaf_of(value: Any) -> Leaf:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def empty_with_strides(tensor: Tensor) -> Tensor:
    """Allocate a tensor with the same memory order, because operations choose their ways by it."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    if any(stride == 0 and size > 1 for size, stride in pairs):
        return tensor.new_empty(tensor.shape)  # elements that share memory cannot differ
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )


def copy_with_strides(tensor: Tensor) -> Tensor:
    """Copy a tensor with the same memory order."""
    return empty_with_strides(tensor).copy_(tensor)


class FollowingMode(TorchDispatchMode):
    """Calls `meet`, which subclasses define, for each operation that computes from tensors."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if _is_computing(func):
            invocation = Invocation.from_arguments(func, args, named)
            if any(isinstance(leaf, Tensor) for leaf in invocation.leaves):
                return self.meet(invocation)
        return func(*args, **named)

    def meet(self, invocation: Invocation) -> Any:
        """Make the call, and return what it returns."""
        raise NotImplementedError


def _is_computing(function: Any) -> bool:
    """Whether an operation makes new numbers, unlike views, copies and factories."""
    aliases = [returned.alias_info for returned in function._schema.returns]
    if any(alias is not None and not alias.is_write for alias in aliases):
        return False
    name = function._schema.name.split("::")[-1]
    return name not in COPIES and not name.startswith(FACTORIES)


class RecordingMode(FollowingMode):
    """Records descriptions of calls, without their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def meet(self, invocation: Invocation) -> Any:
        returned, results = invocation.run()
        self.calls.append(invocation.describe(results))
        return returned


@torch.inference_mode()
def learn_growth(run: Function) -> list[Learned]:
    """Learn how each call within `run` grows, up to the first call that differs between counts."""
    run(FEWER)  # this call creates what `run` keeps for later calls
    recorded = []
    for count in (FEWER, MORE):
        with RecordingMode() as mode:
            run(count)
        recorded.append(mode.calls)
    learned = []
    for fewer, more in zip(*recorded, strict=False):
        alike = len(fewer.arguments) == len(more.arguments)
        if fewer.name != more.name or not alike or len(fewer.results) != len(more.results):
            break
        learned.append(_compare_calls(fewer, more))
    return learned


def _compare_calls(fewer: Call, more: Call) -> Learned:
    try:
        arguments = tuple(map(_compare_leaves, fewer.arguments, more.arguments))
        results = tuple(map(_compare_leaves, fewer.results, more.results))
    except ValueError:
        unknown = (None,) * len(fewer.arguments), (None,) * len(fewer.results)
        return Learned(fewer, *unknown, clear=False)
    return Learned(fewer, arguments, results, clear=True)


def _compare_leaves(fewer: Leaf, more: Leaf) -> Growth | None:
    """Return how a leaf grows from FEWER to MORE images; ValueError where that is not clear."""
    if fewer == more:
        return None
    if isinstance(fewer, int) and isinstance(more, int):
        fewer, more = (fewer,), (more,)
    if isinstance(fewer, tuple) and isinstance(more, tuple) and len(fewer) == len(more):
        changed = [place for place in range(len(fewer)) if fewer[place] != more[place]]
        place = changed[0]
        if len(changed) == 1 and fewer[place] * MORE == more[place] * FEWER:
            return Growth(place, fewer[place] // FEWER)
    raise ValueError(f"{fewer} for {FEWER} images, {more} for {MORE}")
