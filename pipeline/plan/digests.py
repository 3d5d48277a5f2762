"""The objects and their versions for which OUTPUT holds labels.

The names and versions of ten million objects take gigabytes. Both are therefore kept as digests of
128 bits.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

Digests = np.ndarray[Any, np.dtype[np.uint64]]  # (2, N): two halves of the digest of each text
Flags = np.ndarray[Any, np.dtype[np.bool_]]  # (N,)
Positions = np.ndarray[Any, np.dtype[np.int64]]  # (N,)
Names = Callable[[], Iterator[pa.Array]]  # reads the uris again, as arrays of some uris each


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def digests(texts: Iterable[str]) -> Digests:
    """The digest of each text, as (2, N) uint64."""
    joined = b"".join([_digest(text) for text in texts])
    return np.frombuffer(joined, np.uint64).reshape(-1, 2).T


def find_positions(wanted: Digests, among: Digests) -> Positions:
    """The position of each digest in `among`, or -1 if it is not there; (N,) int64.

    The digests in `among` are sorted and unique.
    """
    found = np.searchsorted(among[0], wanted[0])
    result = np.full(len(found), -1)
    rest = np.arange(len(found))
    while len(rest):  # more than one pass only for digests whose first halves are equal
        rest = rest[found[rest] < among.shape[1]]
        rest = rest[among[0, found[rest]] == wanted[0, rest]]
        same = among[1, found[rest]] == wanted[1, rest]
        result[rest[same]] = found[rest[same]]
        rest = rest[~same]
        found[rest] += 1
    return result


@dataclass(frozen=True)
class Objects:
    """The objects of one run."""

    versions: "np.ndarray[Any, np.dtype[np.uint64]]"  # (N, 4): digest of the uri, then of the etag
    labelled: bool = True  # False: the objects are labelled again
    of_input: bool = True  # whether the run read this INPUT


def digest_versions(objects: Iterable[tuple[str, str]]) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """Digests of (uri, etag) pairs as (N, 4) uint64, the format of `Objects.versions`.

    They are collected in one array that grows.
    """
    pairs = np.fromiter((_digest(uri) + _digest(etag) for uri, etag in objects), "S32")
    return pairs.view(np.uint64).reshape(-1, 4)


@dataclass(frozen=True)
class Known:
    """The known objects, sorted by the digests of their uris, which are unique."""

    uris: Digests
    etags: Digests
    labelled: Flags  # see Objects
    of_input: Flags  # see Objects
    names: Names  # reads the uris of the objects, to find the names of objects that are gone


def consume_into_known(runs: list[Objects], names: Names) -> Known:
    """The last version of each uri. It counts as of this INPUT if any of its versions does.

    This function empties the list `runs`, to save memory while the result is built.
    """
    counts = [len(run.versions) for run in runs]
    labelled = np.repeat(np.array([run.labelled for run in runs], bool), counts)
    of_input = np.repeat(np.array([run.of_input for run in runs], bool), counts)
    found = np.empty((4, sum(counts)), np.uint64)
    for stop in np.cumsum(counts)[::-1]:
        versions_of_run = runs.pop().versions
        found[:, stop - len(versions_of_run) : stop] = versions_of_run.T
    order = np.lexsort((found[1], found[0]))  # a stable sort: equal uris keep the order of the runs
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
    """The texts in `names` whose digests are in `wanted`, each once. `wanted` is sorted."""
    found = [pa.array([], pa.string())]
    missing = np.ones(wanted.shape[1], bool)
    for texts in names() if len(missing) else ():
        if not missing.any():
            break
        positions = find_positions(digests(texts.to_pylist()), wanted)
        rows = np.flatnonzero(positions >= 0)
        rows = rows[missing[positions[rows]]]
        rows = rows[np.sort(np.unique(positions[rows], return_index=True)[1])]
        found.append(texts.take(pa.array(rows)))
        missing[positions[rows]] = False
    return pa.concat_arrays(found)
