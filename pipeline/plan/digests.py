"""Which versions of which objects OUTPUT holds labels of.

Names and versions of ten million objects take gigabytes, so both are known by digests of 128 bits.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

Digests = np.ndarray[Any, np.dtype[np.uint64]]  # (2, N): of each text two halves
Flags = np.ndarray[Any, np.dtype[np.bool_]]  # (N,)
Positions = np.ndarray[Any, np.dtype[np.int64]]  # (N,)
Names = Callable[[], Iterator[pa.Array]]  # reads uris again, some at a time


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def digests(texts: Iterable[str]) -> Digests:
    """Of each text 128 bits."""
    joined = b"".join([_digest(text) for text in texts])
    return np.frombuffer(joined, np.uint64).reshape(-1, 2).T


def find_positions(wanted: Digests, among: Digests) -> Positions:
    """Where each digest is `among` others, which are sorted and differ; -1 where it is not."""
    found = np.searchsorted(among[0], wanted[0])
    result = np.full(len(found), -1)
    rest = np.arange(len(found))
    while len(rest):  # once, but for digests whose first halves are the same
        rest = rest[found[rest] < among.shape[1]]
        rest = rest[among[0, found[rest]] == wanted[0, rest]]
        same = among[1, found[rest]] == wanted[1, rest]
        result[rest[same]] = found[rest[same]]
        rest = rest[~same]
        found[rest] += 1
    return result


@dataclass(frozen=True)
class Objects:
    """Objects of one run."""

    versions: "np.ndarray[Any, np.dtype[np.uint64]]"  # (N, 4): digests of uris, then of etags
    labelled: bool = True  # False: to be labelled anew
    of_input: bool = True  # whether it is a run over this INPUT


def digest_versions(objects: Iterable[tuple[str, str]]) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """Of (uri, etag) of each, as Objects hold them: in one piece of memory that grows."""
    pairs = np.fromiter((_digest(uri) + _digest(etag) for uri, etag in objects), "S32")
    return pairs.view(np.uint64).reshape(-1, 4)


@dataclass(frozen=True)
class Known:
    """Objects by the digests of their uris, which are sorted and differ."""

    uris: Digests
    etags: Digests
    labelled: Flags  # see Objects
    of_input: Flags
    names: Names  # to look for those that left


def consume_into_known(runs: list[Objects], names: Names) -> Known:
    """Of each uri the last version; it is of this INPUT where any of them was.

    `runs` is empty then: they are not to be held beside what is made of them.
    """
    counts = [len(run.versions) for run in runs]
    labelled = np.repeat(np.array([run.labelled for run in runs], bool), counts)
    of_input = np.repeat(np.array([run.of_input for run in runs], bool), counts)
    found = np.empty((4, sum(counts)), np.uint64)
    for stop in np.cumsum(counts)[::-1]:
        versions_of_run = runs.pop().versions
        found[:, stop - len(versions_of_run) : stop] = versions_of_run.T
    order = np.lexsort((found[1], found[0]))  # which leaves equals in their order
    for column in found:
        column[:] = column[order]
    labelled, of_input = labelled[order], of_input[order]
    differ = (found[:2, 1:] != found[:2, :-1]).any(axis=0)
    if not differ.all():
        of_input = np.logical_or.reduceat(of_input, np.flatnonzero(np.append(True, differ)))
        last = np.append(differ, True)
        found, labelled = found[:, last], labelled[last]
    return Known(found[:2], found[2:], labelled, of_input, names)


NOTHING_KNOWN = consume_into_known([], lambda: iter(()))


def find_names(wanted: Digests, names: Names) -> pa.Array:
    """The texts, among all `names`, that sorted digests were made of: each once."""
    found = [pa.array([], pa.string())]
    missing = np.ones(wanted.shape[1], bool)
    for texts in names() if len(missing) else ():
        if not missing.any():
            break
        place = find_positions(digests(texts.to_pylist()), wanted)
        rows = np.flatnonzero(place >= 0)
        rows = rows[missing[place[rows]]]
        rows = rows[np.sort(np.unique(place[rows], return_index=True)[1])]
        found.append(texts.take(pa.array(rows)))
        missing[place[rows]] = False
    return pa.concat_arrays(found)
