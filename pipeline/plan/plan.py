"""plan: group the objects under INPUT into shards.

INPUT is listed once. Objects that are already labelled are left out without being opened. The
listing is processed as a stream; only the file of shards is kept.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import pyarrow as pa

from pipeline.formats.counting import COUNT
from pipeline.formats.members import readable_name
from pipeline.isolation.child import Answers, Child, ChildFailed
from pipeline.plan.carry_choice import CarryChoice, parse_carry
from pipeline.plan.contents import HeadReader, Looks
from pipeline.plan.digests import (
    NOTHING_KNOWN,
    Flags,
    Known,
    Positions,
    digests,
    find_names,
    find_positions,
)
from pipeline.plan.footers import FooterReader
from pipeline.plan.list_csv import CSV_SUFFIXES, NO_COLUMN
from pipeline.plan.listing import FORMATS, LEFT_OUT, OTHER_FORMAT, ListedObject, list_objects
from pipeline.plan.shards import Shards, tables_of_shards, write_shards
from pipeline.schema import UNREACHED, UNSEEN, Member, Shard
from pipeline.storage.access import use_input_access
from pipeline.storage.errors import StorageUnavailable
from pipeline.storage.explained_errors import explain_errors
from pipeline.storage.files import InputError, open_location, uri
from pipeline.storage.protocols import is_local
from pipeline.storage.urls import identity, mask, printable

# Loose files are grouped into shards, so that a task reads for seconds and not for one file.
FILES_PER_SHARD = 256
BYTES_PER_SHARD = 64 << 20
COUNT_SECONDS = 60.0  # time limit for the images of one archive
COUNTING = "pipeline.formats.counting"  # the module that the child runs
CHUNK = 1 << 14  # listed objects that are compared with the known objects at a time


@dataclass(frozen=True)
class Plan:
    """The shards to read, and the numbers of other objects under INPUT."""

    shards: Shards
    left_out: dict[str, int]  # number of objects that are not read, by reason (listing.LEFT_OUT)
    known: int  # objects that are already labelled
    changed: int  # objects that are labelled in another version
    again: int  # objects that are labelled again although they are as they were
    of_other_format: int  # objects labelled from this INPUT that --format leaves out now
    unreached: int  # objects labelled from this INPUT whose store does not answer now
    unversioned: int  # objects whose store reports at most their size (`Member.is_unversioned`)
    gone: pa.Array  # uris of objects that were labelled from this INPUT and no longer exist
    # Number of new Parquet files by the columns that their images are read from.
    image_columns: dict[str, int] = field(default_factory=dict)
    # The first object that is not read, by reason: its name below INPUT.
    first_left_out: dict[str, str] = field(default_factory=dict)
    # Number of new Parquet files that lack a column to be carried along, by column.
    files_without: dict[str, int] = field(default_factory=dict)


def plan_shards(
    input_url: str,
    format: str = "auto",
    limit: int | None = None,
    known: Known = NOTHING_KNOWN,
    output: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
    access: str | None = None,
    is_of_output: Callable[[str], bool] = lambda _: False,
    carry: str | None = None,
) -> Plan:
    """Shards of all objects under INPUT whose (`identity` of the uri, etag) is not `known`.

    `limit` is the maximum number of images. Loose files come first, then archives, whose images are
    counted. Objects under `output` are not input. Images and ids of Parquet files are in
    `image_column` and `id_column`; None: in those that the reader finds. `access` is how the stores
    of INPUT are asked, from now on in this process. `is_of_output` finds files of other OUTPUTs, as
    in `list_objects`. `carry` names the columns that images carry along, as --carry does.

    Raises InputError if INPUT is missing, forbidden or holds nothing to label, if a column that is
    to be carried along is not there, or if nothing is known yet and the named columns fit no
    Parquet file.
    """
    if format not in FORMATS:
        raise InputError(f"--format {format}: choose one of {', '.join(FORMATS)}")
    use_input_access(access, output)
    fs, root = open_location(input_url, "INPUT")
    base = readable_name(uri(fs, root))
    looks = Looks()
    choice = CarryChoice(parse_carry(carry), access)
    compared = _Comparison(
        known,
        FooterReader(looks, base, image_column, id_column, access, choice),
        HeadReader(looks),
        choice,
    )
    new = compared.select_new(_list_in_chunks(input_url, format, output, is_of_output, choice))
    found = (
        replace(
            shard,
            image_column=image_column,
            id_column=id_column,
            access=access,
            carry=choice.of_list,
        )
        if shard.kind == "parquet"
        else replace(shard, access=access, carry=choice.of_list)
        for shard in _group_into_shards(identity(uri(fs, root)).rstrip("/"), new)
    )
    shards = write_shards(
        tables_of_shards(found if limit is None else _limit_images(found, limit, input_url))
    )
    first = compared.names_left_out(base)
    if not compared.wanted:
        raise InputError(
            f"INPUT {mask(input_url)} holds nothing to label: no images, .tar shards or Parquet "
            f"files ({left_out_as_text(compared.left_out, first) or 'it is empty'})"
            + (f". The first of them: {error}" if (error := compared.footers.error) else "")
            + (f". {NO_COLUMN}" if root.lower().endswith(CSV_SUFFIXES) else "")
        )
    if (misfit := compared.footers.misfit) and compared.is_first:
        raise InputError(f"INPUT {mask(input_url)}, the first Parquet file: {misfit}")
    if compared.planned and not choice.of_list:
        shards = shards.with_carry(choice.choose())
    known_and_same = compared.wanted - compared.planned
    return Plan(
        shards,
        dict(compared.left_out),
        known_and_same,
        compared.changed,
        compared.again,
        compared.of_other_format,
        compared.unreached,
        compared.unversioned,
        compared.gone_uris(),
        dict(compared.footers.columns),
        first,
        choice.files_without(),
    )


def left_out_as_text(left_out: Mapping[str, int], first: Mapping[str, str] | None = None) -> str:
    """The reasons why objects are left out, each with their number and, if known, the first.

    The text is "" if there are none.
    """
    first = first or {}
    return "; ".join(
        f"{reason} ({left_out[reason]}{_first_as_text(left_out[reason], first.get(reason))})"
        for reason in LEFT_OUT
        if left_out.get(reason)
    )


def _first_as_text(count: int, first: str | None) -> str:
    if first is None:
        return ""
    return f": {printable(first)}" if count == 1 else f", the first is {printable(first)}"


def _list_in_chunks(
    input_url: str,
    format: str,
    output: str | None,
    is_of_output: Callable[[str], bool],
    choice: CarryChoice,
) -> Iterator[list[ListedObject]]:
    """The listing of INPUT in chunks of up to CHUNK objects."""
    with explain_errors("INPUT", input_url):
        objects = list_objects(input_url, format, output, is_of_output, choice)
        while chunk := list(islice(objects, CHUNK)):
            yield chunk


class _Comparison:
    """Compares a listing with the known objects while the listing arrives."""

    def __init__(self, known: Known, footers: FooterReader, heads: HeadReader, choice: CarryChoice):
        self.known, self.footers, self._heads, self._choice = known, footers, heads, choice
        self.wanted = self.planned = self.changed = self.again = 0
        self.of_other_format = self.unreached = self.unversioned = 0
        self.left_out: Counter[str] = Counter()
        self._first_left_out: dict[str, Member] = {}
        self._seen = np.zeros(known.uris.shape[1], bool)

    @property
    def is_first(self) -> bool:
        """Whether no object is known, so that this is the first run of an OUTPUT."""
        return not len(self._seen)

    def select_new(self, listed: Iterable[Sequence[ListedObject]]) -> Iterator[tuple[Member, str]]:
        """Yield the objects that a plan must contain, with their kinds."""
        for found in listed:
            rows = [(member, kind) for member, kind in found if kind not in LEFT_OUT]
            left_out = [(member, kind) for member, kind in found if kind in LEFT_OUT]
            self.wanted += len(rows)
            self.unversioned += _count_unversioned(rows)
            self._count_left_out(left_out)
            if len(self._seen):
                is_of_input = self._is_of_input(self._see(left_out))
                is_other = np.array([kind == OTHER_FORMAT for _, kind in left_out], bool)
                self.of_other_format += int((is_of_input & is_other).sum())
                rows = self._leave_out_known(rows)
            rows = self._leave_out_no_images(rows)
            self.planned += len(rows)
            self._choice.note_new(rows)
            yield from rows

    def _count_left_out(self, rows: Sequence[ListedObject]) -> None:
        self.left_out.update(kind for _, kind in rows)
        for member, kind in rows:
            self._first_left_out.setdefault(kind, member)

    def names_left_out(self, base: str) -> dict[str, str]:
        """The name of the first object that is left out below the URL `base`, by reason."""
        folder = f"{identity(base).rstrip('/')}/"
        return {
            kind: readable_name(identity(member.uri)).removeprefix(folder)
            for kind, member in self._first_left_out.items()
        }

    def _see(self, rows: Sequence[ListedObject]) -> Positions:
        """Note that objects are there. Returns their positions among the known objects."""
        positions = find_positions(
            digests(identity(member.uri) for member, _ in rows), self.known.uris
        )
        self._seen[positions[positions >= 0]] = True
        return positions

    def _is_of_input(self, positions: Positions) -> Flags:
        """Which of the objects at these positions (-1: not known) were labelled from this INPUT."""
        return (positions >= 0) & self.known.of_input[positions]

    def _leave_out_no_images(self, rows: list[ListedObject]) -> list[ListedObject]:
        """Look into objects whose names do not say what they are, and count those left out."""
        looked = self.footers.name_kinds(self._heads.name_kinds(rows))
        no_images = [(member, kind) for member, kind in looked if kind in LEFT_OUT]
        self._count_left_out(no_images)
        self.wanted -= len(no_images)
        self.unversioned -= _count_unversioned(no_images)
        return [(member, kind) for member, kind in looked if kind not in LEFT_OUT]

    def _leave_out_known(self, rows: list[tuple[Member, str]]) -> list[tuple[Member, str]]:
        positions = self._see(rows)
        is_known = positions >= 0
        etags = digests(member.etag for member, _ in rows)
        labelled = is_known & self.known.labelled[positions]
        same = labelled & (etags == self.known.etags[:, positions]).all(axis=0)
        # Labels are not replaced by the failed row of an object that could not be looked at.
        is_unreached = np.array([member.etag == UNREACHED for member, _ in rows], bool)
        is_unseen = np.array([member.etag == UNSEEN for member, _ in rows], bool)
        same |= labelled & (is_unreached | is_unseen)
        self.unreached += int((self._is_of_input(positions) & is_unreached).sum())
        self.changed += int(labelled.sum() - same.sum())
        self.again += int(is_known.sum() - labelled.sum())
        self._choice.note_known(rows[row][1] for row in np.flatnonzero(same))
        return [rows[row] for row in np.flatnonzero(~same)]

    def gone_uris(self) -> pa.Array:
        """Uris of known objects of this INPUT that the listing did not contain."""
        return find_names(self.known.uris[:, ~self._seen & self.known.of_input], self.known.names)


def _count_unversioned(rows: Iterable[ListedObject]) -> int:
    # A local object without a version is a link that leads nowhere.
    return sum(member.is_unversioned and not is_local(member.uri) for member, _ in rows)


def _group_into_shards(base: str, found: Iterable[tuple[Member, str]]) -> Iterator[Shard]:
    """One shard per tar or Parquet file, and shards of several loose files."""
    group: list[Member] = []
    size = number = 0
    for member, kind in found:
        if kind != "files":
            yield Shard(identity(member.uri), kind, (member,))
            continue
        if group and (len(group) == FILES_PER_SHARD or size + member.size > BYTES_PER_SHARD):
            yield Shard(f"{base}#files-{number:05d}", "files", tuple(group))
            group, size, number = [], 0, number + 1
        group.append(member)
        size += max(member.size, 0)
    if group:
        yield Shard(f"{base}#files-{number:05d}", "files", tuple(group))


def _limit_images(shards: Iterable[Shard], limit: int, input_url: str) -> Iterator[Shard]:
    """Shards of the first `limit` images: loose files first, then archives.

    The last archive gets a limit if it holds more images. This function reads `shards` to its end,
    because the listing behind it also finds the known objects and those that are gone.
    """
    archives: list[Shard] = []
    for shard in shards:
        if shard.kind != "files":
            if len(archives) < limit:
                archives.append(shard)
        elif limit > 0:
            yield replace(shard, members=shard.members[:limit])
            limit -= len(shard.members)
    with explain_errors("INPUT", input_url), closing(_counting_child()) as child:
        for shard in archives:
            if limit <= 0:
                return
            count = _count_images(child, shard, limit + 1)
            yield replace(shard, limit=limit if count > limit else None)
            limit -= count


def _counting_child() -> Child:
    """A child that counts the images of archives, of which nobody knows what they hold."""
    return Child(Answers(COUNT, 0, (StorageUnavailable,)), COUNTING, opens_stores=True)


def _count_images(child: Child, shard: Shard, most: int) -> int:
    """Number of images in a tar or Parquet file, at most `most`, which also stands for unknown."""
    if shard.members[0].etag == UNREACHED:  # its store would be waited for
        return 1
    try:
        (row,) = child.stream(f"{COUNTING}:count_images", (shard, most), COUNT_SECONDS, 1)
    except ChildFailed:  # the reader meets it too, and its row says it
        return most
    return int(row["images"])
