"""Parquet files of a plan: which of them hold images, and in which columns.

Their footers are read, and none of their pages.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.formats.members import open_member
from pipeline.formats.parquet import footer_bytes, open_parquet
from pipeline.formats.parquet_columns import Columns, NoImageColumn, candidates_as_text
from pipeline.plan.contents import Looks
from pipeline.plan.listing import NO_IMAGE_COLUMN, ListedObject
from pipeline.schema import Member
from pipeline.storage.files import open_object
from pipeline.storage.protocols import WEB, protocol_of

# Anybody may have written a footer, and Arrow makes objects of several times its size. With 1,000
# columns in 100 row groups it has 10 MB.
MOST_FOOTER_BYTES = 16 << 20


@dataclass(frozen=True)
class _Footer:
    """What a footer says. Both are None if the file is planned without it."""

    columns: str | None = None  # the columns that images are read from
    error: str | None = None  # why there are none


class FooterReader:
    """Reads the footers of the Parquet files of one plan.

    `image_column` is the column of images that the user named. Files that are not below the URL
    `base` are named by a list: they are not looked at, because each entry of a list has a row.
    Files on the web are not looked at, because they would be copied whole.
    """

    def __init__(self, looks: Looks, base: str, image_column: str | None):
        self._looks, self._base, self._image_column = looks, base, image_column
        self.columns: Counter[str] = Counter()  # number of files by the columns of their images
        self.error = ""  # why the first file without images has none

    def name_kinds(self, found: Sequence[ListedObject]) -> list[ListedObject]:
        """The same objects; Parquet files without a column of images are NO_IMAGE_COLUMN now."""
        files = [
            member for member, kind in found if kind == "parquet" and self._is_looked_at(member)
        ]
        footers = self._looks.at(files, self._read)
        for footer in footers.values():
            self.columns.update([footer.columns] if footer.columns else [])
            self.error = self.error or footer.error or ""
        left_out = {member for member, footer in footers.items() if footer.error}
        return [(one, NO_IMAGE_COLUMN if one in left_out else kind) for one, kind in found]

    def _is_looked_at(self, member: Member) -> bool:
        """Whether a file is below INPUT, and in a store that delivers parts of files."""
        is_below = f"{member.uri}/".startswith(f"{self._base.rstrip('/')}/")
        return is_below and protocol_of(member.uri) not in WEB

    def _read(self, member: Member) -> _Footer:
        with open_object(*open_member(member, "shard")) as file:
            if footer_bytes(file) > MOST_FOOTER_BYTES:
                return _Footer()
            columns = Columns(open_parquet(file))
        return _footer_of(columns, self._image_column)


def _footer_of(columns: Columns, named: str | None) -> _Footer:
    """What the columns say. A file that lacks a named column is planned: its row will say so."""
    try:
        return _Footer(columns=candidates_as_text(columns.image_candidates(named)))
    except NoImageColumn as error:
        is_planned = named is not None and (columns.has(named) or columns.has_candidates())
        return _Footer() if is_planned else _Footer(error=str(error))
