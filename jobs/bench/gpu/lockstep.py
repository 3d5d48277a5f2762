"""Which operations of a function of a batch give each image the bits that it gets alone.

Each call that the function makes is made again with its own arguments: with one image alone, with
the images in another order, and beside images of NaN and of Inf. Equal blocks along the dimension
that grows (growth.py) are taken for the images. Where rows of the images alternate, as in
(Q * B, C), a block has rows of several images, and the checks hold for these rows.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jobs.bench.gpu.growth import (
    FollowingMode,
    Function,
    Growth,
    Invocation,
    Learned,
    copy_with_strides,
    empty_with_strides,
)

ALONE, POSITION, REPEATED = "alone", "position", "repeated"
FILLS = {"beside NaN": float("nan"), "beside Inf": float("inf")}
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
ODD = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, close to 2^64 by the golden ratio, as an int64

Variant = tuple[str, Invocation, list[Tensor], int | None]
"""A check, its call, the expected results, and the image to compare; None compares all."""


@dataclass
class Failing:
    """An operation that fails checks, in all its calls of the same shapes."""

    name: str
    shapes: str  # of the tensors of one image
    checks: list[str]
    calls: int
    difference: float | None  # largest difference between results; None where it is not a number


@dataclass(frozen=True)
class Operations:
    """What the checks at one count of images found."""

    checked: int  # calls with arguments that grow with the images
    failing: list[Failing]
    unclear: list[str]  # operations whose growth is not understood, and which are not checked
    # first call that differs from the learned one; later calls are not checked
    departed: str | None
    names: list[str]  # names of all calls before that one
    digests: list[str]  # 8 hex digits of the first image's results of each call


@torch.inference_mode()
def check_operations(
    run: Function, count: int, learned: list[Learned], thorough: bool = True
) -> Operations:
    """Run the function for `count` images, and check its calls.

    `learned` comes from `learn_growth`. If `thorough` is false, only digests are computed.
    """
    with CheckingMode(learned, count, thorough) as mode:
        run(count)
    return mode.report()


class CheckingMode(FollowingMode):
    """Checks each call; the computation goes on as it does without this mode."""

    def __init__(self, learned: list[Learned], count: int, thorough: bool):
        super().__init__()
        self.learned, self.count, self.thorough = learned, count, thorough
        self.met, self.checked = 0, 0
        self.departed: str | None = None
        self.failing: dict[tuple[str, str], Failing] = {}
        self.unclear: set[str] = set()
        self.sums: list[Tensor] = []

    def meet(self, invocation: Invocation) -> Any:
        learned = self._find_learned(invocation)
        if learned is None:
            return invocation.run()[0]
        untouched = invocation.copy_written()
        returned, results = invocation.run()
        self.sums.append(sum_bits(_images(results, learned, 0)))
        if self.thorough:
            self._check(learned, untouched, results)
        return returned

    def _find_learned(self, invocation: Invocation) -> Learned | None:
        """Return the learned call; None from the first differing call on."""
        if self.departed is not None:
            return None
        call = invocation.describe()
        if self.met < len(self.learned) and self.learned[self.met].fits(call, self.count):
            self.met += 1
            return self.learned[self.met - 1]
        self.departed = f"call {self.met}: {call.name}"
        return None

    def _check(self, learned: Learned, invocation: Invocation, results: list[Tensor]) -> None:
        """Make the call again in all ways, and record what differs."""
        failed: dict[str, float | None] = {}
        _try_variant(failed, learned, (REPEATED, invocation, results, None))
        if not learned.clear:
            self.unclear.add(learned.call.name)
        elif learned.batched and self.count > 1:
            self.checked += 1
            for variant in _variants(learned, invocation, results, self.count):
                _try_variant(failed, learned, variant)
        if failed:
            self._note_failing(learned, failed)

    def _note_failing(self, learned: Learned, failed: dict[str, float | None]) -> None:
        shapes = [str(leaf) for leaf in learned.arguments_at(1) if isinstance(leaf, tuple)]
        key = (learned.call.name, " ".join(shapes))
        failing = self.failing.setdefault(key, Failing(*key, [], 0, 0.0))
        failing.calls += 1
        failing.checks = sorted({*failing.checks, *failed})
        failing.difference = _largest((failing.difference, *failed.values()))

    def report(self) -> Operations:
        """Return the findings, after the function has returned."""
        if self.departed is None and self.met < len(self.learned):
            self.departed = f"call {self.met}: there is none"
        sums = [int(total) for total in self.sums]
        return Operations(
            self.checked,
            list(self.failing.values()),
            sorted(self.unclear),
            self.departed,
            names=[learned.call.name for learned in self.learned[: len(sums)]],
            digests=[hashlib.sha256(str(number).encode()).hexdigest()[:8] for number in sums],
        )


def positions_in(count: int) -> tuple[int, ...]:
    """Return the checked positions: all of up to four, else the first, the middle and the last."""
    return tuple(range(count)) if count <= 4 else (0, count // 2, count - 1)


def _variants(
    learned: Learned, invocation: Invocation, results: list[Tensor], count: int
) -> Iterator[Variant]:
    """Yield all other ways to make the call for `count` images."""
    turned = [_turn_images(*pair) for pair in zip(results, learned.results, strict=True)]
    yield POSITION, _change_leaves(learned, invocation, _turn_images), turned, None
    pairs = zip(invocation.leaves, learned.arguments, strict=True)
    fillable = any(growth is not None and _is_floating(leaf) for leaf, growth in pairs)
    for position in positions_in(count):
        own = _images(results, learned, position)
        change: Callable[[Any, Growth | None], Any] = partial(_take_image, position=position)
        yield ALONE, _change_leaves(learned, invocation, change), own, None
        for check, fill in FILLS.items() if fillable else ():
            change = partial(_fill_others, position=position, fill=fill)
            yield check, _change_leaves(learned, invocation, change), own, position


def _change_leaves(
    learned: Learned, invocation: Invocation, change: Callable[[Any, Growth | None], Any]
) -> Invocation:
    pairs = zip(invocation.leaves, learned.arguments, strict=True)
    return replace(invocation, leaves=[change(leaf, growth) for leaf, growth in pairs])


def _image(tensor: Tensor, growth: Growth | None, position: int) -> Tensor:
    if growth is None:
        return tensor
    return tensor.narrow(growth.dimension, position * growth.size, growth.size)


def _images(results: list[Tensor], learned: Learned, position: int) -> list[Tensor]:
    pairs = zip(results, learned.results, strict=True)
    return [_image(result, growth, position) for result, growth in pairs]


def _take_image(leaf: Any, growth: Growth | None, position: int) -> Any:
    """Return an argument for one image alone."""
    if growth is None:
        return leaf
    if isinstance(leaf, int):
        return growth.size
    return copy_with_strides(_image(leaf, growth, position))


def _turn_images(leaf: Any, growth: Growth | None) -> Any:
    """Return an argument with each image one position later, and the last image first."""
    if growth is None or isinstance(leaf, int):
        return leaf
    return empty_with_strides(leaf).copy_(leaf.roll(growth.size, growth.dimension))


def _fill_others(leaf: Any, growth: Growth | None, position: int, fill: float) -> Any:
    """Return an argument with all images but one filled."""
    if growth is None or not _is_floating(leaf):
        return leaf
    filled = empty_with_strides(leaf).fill_(fill)
    _image(filled, growth, position).copy_(_image(leaf, growth, position))
    return filled


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _try_variant(failed: dict[str, float | None], learned: Learned, variant: Variant) -> None:
    """Try a variant, and add its failures to `failed`, the largest difference by check."""
    check, invocation, expected, position = variant
    try:
        found = invocation.copy_written().run()[1]
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
            raise
        failed[f"{check}: {str(error).splitlines()[0]}"] = None
        return
    if position is not None:
        found = _images(found, learned, position)
    for ours, theirs in zip(found, expected, strict=True):
        if not same_bits(ours, theirs):
            failed[check] = _largest((failed.get(check, 0.0), _difference(ours, theirs)))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(INTEGERS[tensor.itemsize]) if tensor.is_floating_point() else tensor


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are equal bit by bit; a NaN may equal another."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    return torch.equal(_bits(ours), _bits(theirs))


def _difference(ours: Tensor, theirs: Tensor) -> float | None:
    """Return the largest absolute difference; None for other shapes, or if it is not finite."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return None
    differs = _bits(ours) != _bits(theirs)
    largest = (ours[differs].double() - theirs[differs].double()).abs().max()
    return float(largest) if largest.isfinite() else None


def _largest(differences: tuple[float | None, ...]) -> float | None:
    numbers = [number for number in differences if number is not None]
    return max(numbers) if len(numbers) == len(differences) else None


def sum_bits(tensors: list[Tensor]) -> Tensor:
    """Sum all bits, each number with its own odd weight, modulo 2^64; the order does not matter.

    The sum stays on the device, because hashing all numbers on the host would take seconds.
    """
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device if tensors else "cpu")
    for tensor in tensors:
        bits = _bits(tensor).reshape(-1).long()
        places = torch.arange(1, bits.numel() + 1, device=bits.device)
        total = total * ODD + (bits * (places * ODD | 1)).sum()
    return total
