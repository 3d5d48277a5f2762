"""Parquet files of a plan: which of them hold images, and in which columns.

Their footers are read here, and none of their pages. Where several columns may hold the images, a
child process looks at values of one file.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import pyarrow as pa

from pipeline.formats.members import open_member
from pipeline.formats.parquet import footer_bytes, open_parquet
from pipeline.formats.parquet_columns import Columns, NoImageColumn, names_of_leaves
from pipeline.isolation.child import Answers, Child, ChildFailed
from pipeline.plan.carry_choice import CarryChoice
from pipeline.plan.contents import Looks
from pipeline.plan.listing import NO_IMAGE_COLUMN, ListedObject
from pipeline.schema import Member
from pipeline.storage.files import open_object
from pipeline.storage.protocols import WEB, protocol_of

# Anybody may have written a footer, and Arrow makes objects of several times its size. With 1,000
# columns in 100 row groups it has 10 MB.
MOST_FOOTER_BYTES = 16 << 20


PARQUET = "pipeline.formats.parquet"  # the module that the child runs
COLUMN = pa.schema([pa.field("column", pa.string())])  # what the child answers
LOOK_SECONDS = 60.0  # for the values of one file


@dataclass(frozen=True)
class _Footer:
    """What a footer says. It has neither candidates nor an error if the file is planned anyway."""

    candidates: str = ""  # the names of the columns that may hold the images
    is_clear: bool = True  # whether there is only one
    error: str = ""  # why there are none
    misfit: str = ""  # why a column that the user named holds no images, or no ids
    names: str = ""  # of the columns, for people; "" if they are not known
    # The types of those columns that are to be carried along, by name.
    carried: Mapping[str, pa.DataType] = field(default_factory=dict)


class FooterReader:
    """Reads the footers of the Parquet files of one plan.

    `image_column` and `id_column` are those that the user named, and `access` how stores are asked.
    Files that are not below the URL `base` are named by a list: they are not looked at, because
    each entry of a list has a row. Files on the web are not looked at, because they would be copied
    whole. `choice` is told which columns there are.
    """

    def __init__(
        self,
        looks: Looks,
        base: str,
        image_column: str | None,
        id_column: str | None,
        access: str | None,
        choice: CarryChoice,
    ):
        self._looks, self._base, self._choice = looks, base, choice
        self._image_column, self._id_column, self._access = image_column, id_column, access
        self.columns: Counter[str] = Counter()  # number of files by the columns of their images
        self.error = ""  # why the first file without images has none
        self._misfit, self._any_fits = "", False
        self._chosen: dict[str, str] = {}  # by candidates, the column of the first such file

    def name_kinds(self, found: Sequence[ListedObject]) -> list[ListedObject]:
        """The same objects; Parquet files without a column of images are NO_IMAGE_COLUMN now."""
        files = [
            member for member, kind in found if kind == "parquet" and self._is_looked_at(member)
        ]
        footers = self._looks.at(files, self._read)
        for member, footer in footers.items():
            if footer.candidates:
                self.columns[self._column_of(member, footer)] += 1
            self.error = self.error or footer.error
            if footer.names and not footer.error:
                self._choice.note_columns(member, footer.names, footer.carried)
        if self._choice.wanted and any(
            kind == "parquet" and not (member in footers and footers[member].names)
            for member, kind in found
        ):
            self._choice.note_unknown_columns()
        left_out = {member for member, footer in footers.items() if footer.error}
        planned = [one for one, kind in found if kind == "parquet" and one not in left_out]
        misfits = [footers[one].misfit if one in footers else "" for one in planned]
        self._any_fits = self._any_fits or not all(misfits)
        self._misfit = self._misfit or next(filter(None, misfits), "")
        return [(one, NO_IMAGE_COLUMN if one in left_out else kind) for one, kind in found]

    @property
    def misfit(self) -> str:
        """Why the columns that the user named fit no planned file. "" if one may be read."""
        return "" if self._any_fits else self._misfit

    def _column_of(self, member: Member, footer: _Footer) -> str:
        """The column of the images of a file, for people. Of like files only one is opened."""
        if footer.is_clear:
            return f"column {footer.candidates}"
        if footer.candidates not in self._chosen:
            self._chosen[footer.candidates] = self._choose(member)
        chosen = self._chosen[footer.candidates]
        if not chosen:
            return f"one of the columns {footer.candidates}"
        return f"column {chosen} in the first, chosen from {footer.candidates} by its values"

    def _choose(self, member: Member) -> str:
        """The column that the reader will take. "" if it cannot be found out now."""
        with closing(Child(Answers(COLUMN, 0), PARQUET, opens_stores=True)) as child:
            arguments = member, self._image_column, self._access
            try:
                (row,) = child.stream(f"{PARQUET}:name_image_column", arguments, LOOK_SECONDS, 1)
            except ChildFailed:  # files break in many ways; the reader meets it too, and says it
                return ""
        return str(row["column"])

    def _is_looked_at(self, member: Member) -> bool:
        """Whether a file is below INPUT, and in a store that delivers parts of files."""
        is_below = f"{member.uri}/".startswith(f"{self._base.rstrip('/')}/")
        return is_below and protocol_of(member.uri) not in WEB

    def _read(self, member: Member) -> _Footer:
        with open_object(*open_member(member, "shard")) as file:
            if footer_bytes(file) > MOST_FOOTER_BYTES:
                return _Footer()
            columns = Columns(open_parquet(file))
        carried = {
            name: columns.types[name] for name in self._choice.names if name in columns.types
        }
        footer = _footer_of(columns, self._image_column, self._id_column)
        return replace(footer, names=columns.names_as_text(), carried=carried)


def _footer_of(columns: Columns, named: str | None, id_column: str | None) -> _Footer:
    """What the columns say. A file that lacks a named column is planned: its row will say so."""
    try:
        leaves = columns.image_candidates(named)
    except NoImageColumn as error:
        is_planned = named is not None and (columns.has(named) or columns.has_candidates())
        return _Footer(misfit=str(error)) if is_planned else _Footer(error=str(error))
    footer = _Footer(names_of_leaves(leaves), is_clear=len(leaves) == 1)
    try:
        columns.id_leaf(id_column)
    except NoImageColumn as error:
        return replace(footer, misfit=str(error))
    return footer
