"""The finished part of a plan: what can be published before all of the plan is labelled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.plan.remaining import Flags, Numbers, Staged
from pipeline.plan.shards import (
    Shards,
    shards_of_table,
    table_of_shards,
    write_shards,
)
from pipeline.schema import Member


@dataclass(frozen=True)
class Split:
    """A plan in two parts. Objects of which nothing is staged are in neither."""

    finished: Shards  # archives that are labelled whole, and the loose files that are labelled
    staged: Staged  # the staged images of `finished`, which is all of them
    begun: Shards  # archives that are labelled in part
    begun_images: int  # number of staged images of `begun`
    left: int  # number of objects that are not in `finished`


def split_plan(shards: Shards, staged: Staged) -> Split:
    """Split a plan by what is staged of it.

    A loose file is an object of its own: shards of them are narrowed to the files that are staged.
    An archive is finished only as a whole.
    """
    outline = shards.outline
    places = staged.positions_of(outline["shard"])
    found = np.append(staged.found, 0)[places]
    sizes = np.append(staged.sizes, -1)[places]
    loose = pc.equal(outline["kind"], "files").to_numpy()
    objects = outline["objects"].to_numpy()
    finished = np.where(loose, found > 0, found == sizes)
    begun = ~loose & (found > 0) & ~finished
    narrowed = loose & finished & (found < objects)
    kept = np.where(loose, found, objects)[finished].sum()
    rows = partial(_rows, shards)
    return Split(
        write_shards(_narrow(rows(finished), narrowed[finished], places[finished], staged)),
        staged_of(staged, outline["shard"].filter(pa.array(finished)), found[finished]),
        write_shards(rows(begun)),
        int(found[begun].sum()),
        int(objects.sum() - kept),
    )


def staged_of(staged: Staged, names: pa.ChunkedArray, sizes: Numbers) -> Staged:
    """What is staged of the shards `names`, which have `sizes` images."""
    places = staged.positions_of(names)
    order = np.argsort(places)  # names are sorted in `staged`
    chosen = places[order]
    rows = np.isin(staged.shard, chosen)
    return Staged(
        staged.shards.take(pa.array(chosen)),
        staged.files,
        staged.found[chosen],
        sizes[order],
        staged.boxes[chosen],
        staged.status.filter(pa.array(rows)),
        np.searchsorted(chosen, staged.shard[rows]),
        staged.file[rows],
        staged.start[rows],
        staged.stop[rows],
    )


def _rows(shards: Shards, chosen: Flags) -> Iterator[pa.Table]:
    """The chosen rows of a plan, as tables of schema PLAN with some shards each."""
    start = 0
    for table in shards.tables():
        yield table.filter(pa.array(chosen[start : start + len(table)]))
        start += len(table)


def _narrow(
    tables: Iterator[pa.Table],
    narrowed: Flags,
    places: Numbers,
    staged: Staged,
) -> Iterator[pa.Table]:
    """The tables of a plan, with its `narrowed` shards narrowed to their staged members."""
    start = 0
    for table in tables:
        stop = start + len(table)
        if not narrowed[start:stop].any():
            yield table
        else:
            shards = shards_of_table(table)
            for number in np.flatnonzero(narrowed[start:stop]).tolist():
                spans = staged.finished_spans(int(places[start + number]))
                members = _members(shards[number].members, spans)
                shards[number] = replace(shards[number], members=members)
            yield table_of_shards(shards)
        start = stop


def _members(members: Sequence[Member], spans: Sequence[tuple[int, int]]) -> tuple[Member, ...]:
    """The members at the positions of `spans`, each [start, stop)."""
    return tuple(member for start, stop in spans for member in members[start:stop])
