"""Which columns a run carries along (--carry), and of which types.

Types of columns of Parquet files and lists are those of their footers, which planning reads anyway.
Those of json members are what the user says, else text.
"""

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from pipeline.carry.columns import NO_CARRY, Carry, Column
from pipeline.carry.types import carried_type, common_type, name_of_type, names_of_types, type_named
from pipeline.carry.values import can_be_converted
from pipeline.isolation.child import Answers, Child, ChildFailed
from pipeline.schema import IMAGES, Member
from pipeline.storage.errors import InputError
from pipeline.storage.urls import mask, printable

MOST_COLUMNS = 64
LONGEST_NAME = 128  # characters
# Columns that the views of an OUTPUT add to those of `images`, and the start of those of `compact`.
_OF_VIEWS, OF_COMPACT = ("run", "filename"), "compact_"
SIDECARS = "pipeline.formats.sidecars"  # the module that the child runs
NAME = pa.schema([pa.field("column", pa.string())])  # what the child answers
LOOK_SECONDS = 60.0  # for each name in the json members of one tar
_WHAT_IS_CARRIED = "texts, numbers, bools, times and lists of these are carried along"


@dataclass(frozen=True)
class WantedColumn:
    """A column that the user names, and its type if the user gives one."""

    name: str
    type: pa.DataType | None = None


def parse_carry(text: str | None) -> tuple[WantedColumn, ...]:
    """The columns of --carry: `split,score:float`. Raises InputError for one that cannot be."""
    wanted = tuple(map(_parse_column, text.split(","))) if text is not None else ()
    if len(wanted) > MOST_COLUMNS:
        raise InputError(f"--carry names {len(wanted)} columns: give {MOST_COLUMNS} at most")
    own = {name.casefold(): name for name in IMAGES.names}
    seen: set[str] = set()
    for column in wanted:
        name = column.name.casefold()
        if name in own:
            raise InputError(f"--carry {column.name}: `images` has a column {own[name]} of its own")
        if name in _OF_VIEWS or name.startswith(OF_COMPACT):
            raise InputError(
                f"--carry {column.name}: {', '.join(_OF_VIEWS)} and names that start with "
                f"{OF_COMPACT} are columns of detr-batch's own views"
            )
        if name in seen:
            raise InputError(
                f"--carry names {column.name} twice (SQL makes no difference between A and a)"
            )
        seen.add(name)
    return wanted


def _parse_column(entry: str) -> WantedColumn:
    name, colon, named = (part.strip() for part in entry.rpartition(":"))
    if not colon:
        name, named = named, ""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise InputError(
            f"--carry: {printable(entry)[:LONGEST_NAME]!r} is no name of a column: give names "
            "like split,caption or score:float"
        )
    kind = type_named(named) if colon else None
    if colon and kind is None:
        raise InputError(f"--carry {entry.strip()}: {named} is no type: {names_of_types()}")
    return WantedColumn(name, kind)


class CarryChoice:
    """Learns of one plan's objects which columns they have, and chooses those to carry along."""

    def __init__(self, wanted: tuple[WantedColumn, ...], access: str | None):
        self.wanted, self._access = wanted, access
        self.names = tuple(column.name for column in wanted)
        self.of_list: Carry = NO_CARRY  # the choice, if INPUT is a list with columns
        self._columns = ""  # of the first Parquet file, for people
        self._files = 0  # new Parquet files whose footers were read
        # By column and by type: the first file that has it; and the number of files that have it.
        self._types: dict[str, dict[pa.DataType, Member]] = {name: {} for name in self.names}
        self._having: dict[str, int] = dict.fromkeys(self.names, 0)
        self._has_unknown_columns = False
        self._knows_archives = False
        self._first_tar: Member | None = None

    def note_known(self, kinds: Iterable[str]) -> None:
        """Note the kinds of objects that are labelled already."""
        if self.wanted and not self._knows_archives:  # of ten million objects it takes seconds
            self._knows_archives = not {"tar", "parquet"}.isdisjoint(kinds)

    def note_new(self, objects: Iterable[tuple[Member, str]]) -> None:
        """Note objects that are planned."""
        if self.wanted and self._first_tar is None:
            self._first_tar = next((member for member, kind in objects if kind == "tar"), None)

    def note_columns(
        self, member: Member, columns: str, carried: Mapping[str, pa.DataType]
    ) -> None:
        """Note the `columns` of a new Parquet file, and the types of those that are wanted."""
        self._columns = self._columns or columns
        self._files += 1
        for name, kind in carried.items():
            self._types[name].setdefault(kind, member)
            self._having[name] += 1

    def note_unknown_columns(self) -> None:
        """Note that there is a new Parquet file whose footer planning did not read."""
        self._has_unknown_columns = True

    def choose_for_list(self, path: str, schema: pa.Schema) -> Carry:
        """The columns of a list that are carried along. Raises InputError if it lacks one."""
        if missing := [name for name in self.names if name not in schema.names]:
            raise InputError(
                f"--carry {missing[0]}: the list {mask(path)} has no such column; its columns are "
                f"{printable(', '.join(schema.names))[:1000]}"
            )
        list_itself = Member(path, "", -1)
        for name in self.names:
            self._types[name] = {schema.field(schema.get_field_index(name)).type: list_itself}
        self.of_list = Carry(tuple(map(self._column, self.wanted)))
        return self.of_list

    def choose(self) -> Carry:
        """The columns that the new objects carry along.

        Raises InputError for a column that none of them has, or whose types contradict one another.
        """
        if self.of_list or not self.wanted:
            return self.of_list
        missing = [one.name for one in self.wanted if not self._may_have(one)]
        if missing and (self._first_tar or self._files or not self._knows_archives):
            raise InputError(self._missing_text(missing[0]))
        return Carry(tuple(self._column(one) for one in self.wanted if one.name not in missing))

    def files_without(self) -> dict[str, int]:
        """The number of new Parquet files that lack a column which others have, by column."""
        return {
            name: self._files - having
            for name, having in self._having.items()
            if 0 < having < self._files
        }

    def _may_have(self, column: WantedColumn) -> bool:
        """Whether a new object may have a column, as far as planning can tell."""
        if self._types[column.name] or self._has_unknown_columns:
            return True
        if self._first_tar is None:
            return False
        if column.type is not None or self._names_in_tar is None:
            return True
        return column.name in self._names_in_tar

    def _column(self, wanted: WantedColumn) -> Column:
        """A column with the type that the user gives, else that of all files, else text.

        Raises InputError if there is no such type, or if no value of a file can have it.
        """
        seen = self._types[wanted.name]
        if wanted.type is not None:
            for kind, member in seen.items():
                if not can_be_converted(kind, wanted.type):
                    raise InputError(
                        f"--carry {wanted.name}:{name_of_type(wanted.type)}: it is "
                        f"{printable(str(kind))[:100]} in {mask(member.uri)}, of which no value "
                        f"can be {name_of_type(wanted.type)}: {_WHAT_IS_CARRIED}"
                    )
            return Column(wanted.name, wanted.type)
        carried: dict[pa.DataType, Member] = {}
        for kind, member in seen.items():
            one = carried_type(kind)
            if one is None:  # nested values cannot be cast to text
                other = f". As another type: --carry {wanted.name}:string"
                raise InputError(
                    f"--carry {wanted.name}: it is {printable(str(kind))[:100]} in "
                    f"{mask(member.uri)}: {_WHAT_IS_CARRIED}"
                    f"{'' if pa.types.is_nested(kind) else other}"
                )
            if not pa.types.is_null(kind):  # all values are null, and tell no type
                carried.setdefault(one, member)
        return Column(wanted.name, _type_of_all(wanted.name, carried) if carried else pa.string())

    def _missing_text(self, name: str) -> str:
        if self._first_tar is not None:
            found = ", ".join(self._names_in_tar or []) or "none"
            return (
                f"--carry {name}: the first json members of {mask(self._first_tar.uri)} have no "
                f"such value; theirs are {printable(found)[:1000]}. One that few samples have "
                f"takes a type: --carry {name}:string"
            )
        if self._files:
            return f"--carry {name}: no new Parquet file has such a column: {self._columns}"
        return (
            f"--carry {name}: INPUT has image files alone, which have no columns. They are carried "
            "along from Parquet rows, from json members of tars, and from lists with columns"
        )

    @cached_property
    def _names_in_tar(self) -> list[str] | None:
        """The names in the first json members of the first tar; None if they cannot be read now."""
        with closing(Child(Answers(NAME, 0), SIDECARS, opens_stores=True)) as child:
            arguments = self._first_tar, self._access
            try:
                rows = child.stream(f"{SIDECARS}:name_json_columns", arguments, LOOK_SECONDS)
                return [row["column"] for row in rows]
            except ChildFailed:  # the reader meets it too, and says it
                return None


def _type_of_all(name: str, found: Mapping[pa.DataType, Member]) -> pa.DataType:
    """A type for the values of all types. Raises InputError if there is none."""
    kinds = list(found)
    chosen = kinds[0]
    for kind in kinds[1:]:
        common = common_type(chosen, kind)
        if common is None:
            raise InputError(
                f"--carry {name}: it is {name_of_type(chosen)} in {mask(found[kinds[0]].uri)} and "
                f"{name_of_type(kind)} in {mask(found[kind].uri)}: give a type for all, as "
                f"--carry {name}:string"
            )
        chosen = common
    return chosen
