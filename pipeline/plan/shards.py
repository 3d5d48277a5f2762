"""Shards in a Parquet file, one row per shard.

As Python objects the shards of ten million images would take gigabytes.

One Ray task reads one row group. The first row groups hold one shard each. Later ones grow with the
number of shards before them, so that a plan has at most some thousand row groups.
"""

import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.carry.columns import (
    CARRIED,
    NO_CARRY,
    NOT_CARRIED,
    Carry,
    carried_part,
    carry_of_struct,
    own_part,
    with_any_carried,
)
from pipeline.carry.values import PlainRow, plain_rows, struct_array
from pipeline.formats.rows import MAX_ENCODED_BYTES
from pipeline.schema import NOT_ALLOWED, UNREACHED, UNSEEN, Member, Shard
from pipeline.storage.files import local_copy, open_location, open_object, write_whole
from pipeline.storage.parquet import completed, read_group, read_tables, write_parquet
from pipeline.storage.urls import identity

_MEMBER = pa.struct([("uri", pa.string()), ("etag", pa.string()), ("size", pa.int64())])
PLAN = pa.schema(
    [
        ("shard", pa.string()),
        ("kind", pa.string()),
        ("members", pa.list_(_MEMBER)),
        ("limit", pa.int64()),
        ("image_column", pa.string()),  # versions before 0.2 did not write this and what follows
        ("id_column", pa.string()),
        ("access", pa.string()),
    ]
)


def plan_schema(carry: Carry) -> pa.Schema:
    """PLAN of a run that carries columns along.

    Of each member it has what its list says of it; null if no list says it. So the plan also says
    which columns are carried, and of which types.
    """
    if not carry:
        return PLAN
    carried = pa.field(CARRIED, pa.list_(carry.struct))
    return pa.schema([*PLAN, carried, pa.field(NOT_CARRIED, pa.list_(pa.int32()))])


_READABLE = with_any_carried(PLAN)
# A row group has 1/256 of the number of shards before it: 512 shards make 512 row groups, and a
# million shards make 2,400.
GROUP_SHARE = 256
ROWS_AT_ONCE = 64  # shards that are processed together, of up to 256 files each

# What the driver keeps of each shard. `objects` is the number of members. `size` is their size in
# bytes, as far as it is known. The shard is row `row` of row group `group` of the plan.
OUTLINE = pa.schema(
    [
        ("shard", pa.string()),
        ("kind", pa.string()),
        ("objects", pa.int64()),
        ("size", pa.int64()),
        ("group", pa.int64()),
        ("row", pa.int64()),
    ]
)


class Shards:
    """The shards of a run, in a local file that is deleted together with this object."""

    def __init__(self, path: Path):
        self.path = path
        weakref.finalize(self, path.unlink, missing_ok=True)

    @cached_property
    def outline(self) -> pa.Table:
        """A table of schema OUTLINE, in the order of the shards."""
        return _read_outline(self.path)

    def __len__(self) -> int:
        return len(self.outline)

    def __iter__(self) -> Iterator[Shard]:
        for table in self.tables():
            yield from shards_of_table(table)

    def tables(self) -> Iterator[pa.Table]:
        """All shards as tables of schema `plan_schema(self.carry)`, with some shards each."""
        return read_plan_tables(str(self.path), carried=True)

    @cached_property
    def carry(self) -> Carry:
        """The columns that the images of these shards carry along."""
        return _carry_of_plan(pq.read_schema(self.path))

    def with_carry(self, carry: Carry) -> "Shards":
        """The same shards, which carry columns along of which no list says anything."""
        if not carry:
            return self
        schema = plan_schema(carry)
        return write_shards(completed(table, schema) for table in self.tables())

    def without_carried(self) -> "Shards":
        """The same shards without what lists say of their members, which the tables hold."""
        return write_shards(read_plan_tables(str(self.path))) if self.carry else self

    def names(self) -> list[str]:
        """The names of all shards, in their order."""
        names: list[str] = self.outline["shard"].to_pylist()
        return names

    @property
    def size(self) -> int:
        """Bytes of all objects whose size is known and that are read: not of images too large."""
        return pc.sum(self.outline["size"]).as_py() or 0

    @property
    def objects(self) -> int:
        """The number of all objects: loose files and archives."""
        return pc.sum(self.outline["objects"]).as_py() or 0

    @property
    def images(self) -> int | None:
        """The number of images. None if archives are among the shards: these are not opened yet."""
        if len(self.outline.filter(pc.not_equal(self.outline["kind"], "files"))):
            return None
        return self.objects

    @property
    def loose(self) -> tuple[int, int]:
        """The number of loose files, and their bytes."""
        files = self.outline.filter(pc.equal(self.outline["kind"], "files"))
        return pc.sum(files["objects"]).as_py() or 0, pc.sum(files["size"]).as_py() or 0

    def first_member(self) -> Member:
        """The first object that the listing could look at; the very first if there is none."""
        every = (member for shard in self for member in shard.members)
        return next((one for one in every if _was_seen(one)), next(iter(self)).members[0])

    @cached_property
    def has_secrets(self) -> bool:
        """Whether the address of an object contains secrets, such as a signature or a password."""
        return any(
            identity(uri) != uri for table in self.tables() for uri in _suspicious_uris(table)
        )

    def without_secrets(self) -> "Shards":
        """The shards with the names that tables use for objects (`identity`).

        These names identify objects, but they may not open them.
        """
        return self.with_uris(identity) if self.has_secrets else self

    def with_uris(self, name: Callable[[str], str]) -> "Shards":
        """The same shards, with each object's address replaced by `name(address)`."""
        return write_shards(_with_uris(table, name) for table in self.tables())

    def write_to(self, url: str) -> None:
        """Write the file to `url` atomically: it appears whole or not at all."""
        write_whole(*open_location(url, "OUTPUT"), self.path)


def _was_seen(member: Member) -> bool:
    return member.etag not in (UNSEEN, UNREACHED, NOT_ALLOWED)


def write_shards(tables: Iterable[pa.Table]) -> Shards:
    """Write tables of one `plan_schema` into a temporary file as they arrive; return its Shards."""
    rest = iter(tables)
    first = next(rest, PLAN.empty_table())
    descriptor, name = tempfile.mkstemp(prefix="detr-batch-", suffix=".parquet")
    result = Shards(Path(name))
    with open(descriptor, "w+b") as file:
        # Addresses are always read from start to end, so dictionaries and statistics do not help.
        write_parquet(
            file,
            first.schema,
            _row_groups(chain([first], rest)),
            use_dictionary=["kind"],
            write_statistics=False,
        )
    return result


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Regroup tables of a plan into the row groups of a file."""
    count, waiting = 0, PLAN.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table]) if len(waiting) else table
        while len(waiting) >= (group := max(1, count // GROUP_SHARE)):
            yield waiting.slice(0, group)
            count, waiting = count + group, waiting.slice(group)
    if len(waiting):
        yield waiting


def tables_of_shards(shards: Iterable[Shard]) -> Iterator[pa.Table]:
    """Shards as tables of schema PLAN, with up to ROWS_AT_ONCE shards each."""
    rest = iter(shards)
    while some := list(islice(rest, ROWS_AT_ONCE)):
        yield table_of_shards(some)


def read_plan_tables(
    url: str, columns: Sequence[str] = PLAN.names, carried: bool = False
) -> Iterator[pa.Table]:
    """Yield the shards of the plan at `url` as tables of schema PLAN, with some shards each.

    With `carried` they have what the plan carries along too. Plans of this version and of earlier
    versions can be read. Raises DamagedFile if the file is not whole.
    """
    with local_copy(*open_location(url, "OUTPUT")) as file:
        wanted = [*columns, CARRIED, NOT_CARRIED] if carried else columns
        own = pa.schema([PLAN.field(name) for name in columns])
        for table in read_tables(file, url, _READABLE, wanted, ROWS_AT_ONCE):
            yield completed(table, pa.schema([*own, *carried_part(table).schema]))


def _carry_of_plan(schema: pa.Schema) -> Carry:
    if CARRIED not in schema.names:
        return NO_CARRY
    return carry_of_struct(schema.field(CARRIED).type.value_type)


def read_shards_of_group(url: str, group: int, rows: Sequence[int]) -> Iterator[Shard]:
    """Yield the shards in the rows `rows` of one row group of the plan at `url`.

    Raises DamagedFile if a page that is read is damaged.
    """
    with open_object(*open_location(url, "OUTPUT")) as file:
        table = read_group(file, url, _READABLE, group)
    for row in rows:
        yield from shards_of_table(table.slice(row, 1))


def table_of_shards(shards: Sequence[Shard]) -> pa.Table:
    """Shards that carry the same columns along as a table of `plan_schema`, one row per shard."""
    every = [member for shard in shards for member in shard.members]
    flat = pa.StructArray.from_arrays(
        [
            pa.array([member.uri for member in every], pa.string()),
            pa.array([member.etag for member in every], pa.string()),
            pa.array([member.size for member in every], pa.int64()),
        ],
        fields=list(_MEMBER),
    )
    lengths = np.array([len(shard.members) for shard in shards], np.int64)
    columns = [
        [shard.shard for shard in shards],
        [shard.kind for shard in shards],
        _list_array(flat, lengths),
        [shard.limit for shard in shards],
        [shard.image_column for shard in shards],
        [shard.id_column for shard in shards],
        [shard.access for shard in shards],
    ]
    own = pa.table(columns, schema=PLAN)
    carry = shards[0].carry if shards else NO_CARRY
    if not carry:
        return own
    if not any(member.carried for member in every):
        return completed(own, plan_schema(carry))
    said = [member.carried or ({}, 0) for member in every]
    values = struct_array([row for row, _ in said], carry)
    lost = pa.array([count for _, count in said], pa.int32())
    lists = [_list_array(one, lengths) for one in (values, lost)]
    return pa.table([*own.columns, *lists], schema=plan_schema(carry))


def shards_of_table(table: pa.Table) -> list[Shard]:
    """The shards of a table of a plan; the inverse of `table_of_shards`."""
    carry = _carry_of_plan(table.schema)
    rows = own_part(table).to_pylist()
    said: Iterator[tuple[PlainRow, int] | None] = repeat(None)
    if carry and not table[CARRIED].null_count:
        lists = [table[name].combine_chunks() for name in (CARRIED, NOT_CARRIED)]
        values, lost = (pc.list_flatten(one) for one in lists)
        said = zip(plain_rows(values), lost.to_pylist(), strict=True)
    return [
        Shard(
            **{
                **row,
                "members": tuple(Member(**one, carried=next(said)) for one in row["members"]),
                "carry": carry,
            }
        )
        for row in rows
    ]


def member_values(table: pa.Table, field: str) -> pa.Array:
    """One field of all members in a table of schema PLAN, as a flat array."""
    return pc.struct_field(pc.list_flatten(table["members"].combine_chunks()), field)


def _list_array(
    flat: pa.Array, lengths: "np.ndarray[tuple[int], np.dtype[np.int64]]"
) -> pa.ListArray:
    """The elements of `flat` as lists with the given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat, pa.list_(flat.type))


def _suspicious_uris(table: pa.Table) -> list[str]:
    """Addresses that may differ from the result of `identity`: those with `@`, `?`, `#` or `;`."""
    uris = member_values(table, "uri")
    found: list[str] = uris.filter(pc.match_substring_regex(uris, "[@?#;]")).to_pylist()
    return found


def _with_uris(table: pa.Table, name: Callable[[str], str]) -> pa.Table:
    uris = [name(uri) for uri in member_values(table, "uri").to_pylist()]
    fields = [
        pa.array(uris, pa.string()),
        member_values(table, "etag"),
        member_values(table, "size"),
    ]
    flat = pa.StructArray.from_arrays(fields, fields=list(_MEMBER))
    lengths = pc.list_value_length(table["members"]).to_numpy()
    return table.set_column(2, PLAN.field("members"), _list_array(flat, lengths))


def _read_outline(path: Path) -> pa.Table:
    plan = pq.ParquetFile(path, pre_buffer=False)
    columns = ["shard", "kind", "members.list.element.size"]
    tables = [OUTLINE.empty_table()]
    for group in range(plan.num_row_groups):
        table = plan.read_row_group(group, columns=columns)
        objects = pc.list_value_length(table["members"]).to_numpy()
        sizes = member_values(table, "size").to_numpy()
        is_loose = np.repeat(table["kind"].to_numpy() == "files", objects)
        is_read = (sizes >= 0) & ~(is_loose & (sizes > MAX_ENCODED_BYTES))
        before = np.concatenate([[0], np.cumsum(np.where(is_read, sizes, 0))])
        ends = np.cumsum(objects)
        arrays = [
            table["shard"],
            table["kind"],
            pa.array(objects, pa.int64()),
            pa.array(before[ends] - before[ends - objects], pa.int64()),
            pa.array(np.full(len(table), group)),
            pa.array(np.arange(len(table))),
        ]
        tables.append(pa.table(arrays, schema=OUTLINE))
    return pa.concat_tables(tables).combine_chunks()
