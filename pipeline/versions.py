"""Which versions of which objects OUTPUT holds labels of.

Names and versions of ten million objects take gigabytes, so both are known by digests of 128 bits.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

Digests = np.ndarray[Any, np.dtype[np.uint64]]  # (N, 2)
Flags = np.ndarray[Any, np.dtype[np.bool_]]  # (N,)
Places = np.ndarray[Any, np.dtype[np.int64]]  # (N,)
Names = Callable[[], Iterator[pa.Array]]  # reads uris again, some at a time


def digests(texts: Iterable[str]) -> Digests:
    """Of each text 128 bits."""
    joined = b"".join([blake2b(text.encode(), digest_size=16).digest() for text in texts])
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def places(wanted: Digests, among: Digests) -> Places:
    """Where each digest is `among` others, which are sorted and differ; -1 where it is not."""
    found = np.searchsorted(among[:, 0], wanted[:, 0])
    open_ones = np.arange(len(wanted))
    result = np.full(len(wanted), -1)
    while len(open_ones):  # once, but for digests of which one half is the same
        open_ones = open_ones[found[open_ones] < len(among)]
        there = among[found[open_ones]]
        open_ones, there = (x[there[:, 0] == wanted[open_ones, 0]] for x in (open_ones, there))
        same = there[:, 1] == wanted[open_ones, 1]
        result[open_ones[same]] = found[open_ones[same]]
        open_ones = open_ones[~same]
        found[open_ones] += 1
    return result


@dataclass(frozen=True)
class Known:
    """Objects by the digests of their uris, which are sorted and differ."""

    uris: Digests
    etags: Digests
    labelled: Flags  # False: to be labelled anew
    of_input: Flags  # whether a run over this INPUT made the labels
    names: Names  # to look for those that left


def _nothing() -> Iterator[pa.Array]:
    yield from ()


NOTHING = Known(digests([]), digests([]), np.zeros(0, bool), np.zeros(0, bool), _nothing)


def known(
    uris: Iterable[str],
    etags: Iterable[str],
    labelled: bool = True,
    of_input: bool = True,
) -> Known:
    """Objects that are alike in what is known of them, in any order: see `newest`."""
    found = digests(uris)
    count = len(found)
    flags = np.full(count, labelled), np.full(count, of_input)
    return Known(found, digests(etags), *flags, _nothing)


def newest(parts: list[Known], names: Names) -> Known:
    """Of each uri the last version; it is of this INPUT where any of them was.

    `parts` is empty then: they are not to be held beside what is made of them.
    """
    uris, etags, labelled, of_input = (
        np.concatenate([getattr(part, name) for part in (NOTHING, *parts)])
        for name in ("uris", "etags", "labelled", "of_input")
    )
    parts.clear()
    order = np.lexsort((uris[:, 1], uris[:, 0]))  # which leaves equals in their order
    uris = uris[order]
    first = np.append(True, (uris[1:] != uris[:-1]).any(axis=1))[: len(uris)]
    if len(uris):
        of_input = np.logical_or.reduceat(of_input[order], np.flatnonzero(first))
    uris = uris[first]
    last = order[np.append(first[1:], True)[: len(first)]]
    return Known(uris, etags[last], labelled[last], of_input, names)


def named(wanted: Digests, names: Names) -> pa.Array:
    """The texts, among all `names`, that sorted digests were made of."""
    found = [pa.array([], pa.string())]
    missing = np.ones(len(wanted), bool)
    for texts in names() if len(wanted) else ():
        if not missing.any():
            break
        place = places(digests(texts.to_pylist()), wanted)
        rows = np.flatnonzero(place >= 0)
        rows = rows[missing[place[rows]]]
        rows = rows[np.sort(np.unique(place[rows], return_index=True)[1])]
        found.append(texts.take(pa.array(rows)))
        missing[place[rows]] = False
    return pa.concat_arrays(found)
