"""The images beside their labels: read again from where they were labelled, or linked there.

The same child process reads them as in a run, since nobody has checked the files. Their bytes are
not changed. Of an import, whose names anybody may have written, only images are taken, and only
from below the folder that the user named. An image that cannot be had, or is another than the one
that was labelled, is left out with its labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter

import pyarrow as pa
import pyarrow.compute as pc

from jobs.exports.earlier_export import MARK
from jobs.exports.place import Folder
from jobs.exports.reader import LabelledImage, Labels
from jobs.output.known_objects import read_plan
from jobs.output.manifest import Manifest
from jobs.report.imported import Imported, read_import
from pipeline.formats.image_names import HEAD_BYTES, looks_like_image
from pipeline.formats.members import open_member
from pipeline.formats.rows import CHANGED_TEXT, is_planned
from pipeline.isolation.child import ChildFailed, Row, read_rows_in_child
from pipeline.plan.shards import shards_of_table
from pipeline.schema import CHANGED, OK, UNDECODABLE, UNREADABLE, UNSEEN, Member, Shard
from pipeline.stages.read import READ_SECONDS, reading_child
from pipeline.storage.errors import CommandFailed, InputError
from pipeline.storage.protocols import is_local
from pipeline.storage.urls import mask, printable

FILES_AT_ONCE = 256  # loose images that are asked for together
ARCHIVES = ("tar", "parquet")  # kinds of shards
READ_ARCHIVE, READ_LOOSE = "pipeline.formats.read:read_rows", "jobs.report.pictures:rows_at"
NOT_BELOW = "only images below the folder that `import --images URL` names are opened"
NO_IMAGE = "its first bytes are those of no image"


@dataclass(frozen=True)
class HowRead:
    """How a run read its images."""

    archives: dict[str, Shard]  # by the name of the shard
    access: str | None  # of loose files, see storage/access.py
    imported: Imported | None  # if `import` made the run, which read no images


class Pictures:
    """Puts images into a folder of an export.

    `missing` are those that cannot be had: by status their number, and one of them with the reason.
    """

    def __init__(self, labels: Labels, folder: Folder, images: str, link: bool):
        """`images` is the name of the folder in `folder`; `link` links local files to it."""
        self.missing: dict[str, tuple[int, str]] = {}
        self._labels, self._folder, self._images, self._link = labels, folder, images, link
        self._linked: list[Member] = []  # one of the local files that are linked, if there are any
        self._child = reading_child("jobs.report.pictures")
        folder.add(f"{images}/{MARK}", "")

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()

    def place(self, images: Iterator[LabelledImage]) -> Iterator[LabelledImage]:
        """Put each image into the folder, and yield those that could be had.

        The images come by run and shard. CommandFailed if none could be had.
        """
        placed = 0
        for run, of_run in groupby(images, key=attrgetter("run")):
            how = _how_run_read(self._labels.output, self._labels.runs[run])
            for shard, of_shard in groupby(of_run, key=attrgetter("shard")):
                if shard in how.archives:
                    found = self._place_archived(how.archives[shard], of_shard)
                else:
                    found = self._place_loose(of_shard, how)
                for image in found:
                    placed += 1
                    yield image
        if self.missing and not placed:
            raise CommandFailed(f"no image can be put beside the labels: {self.missing_as_text()}")

    def missing_as_text(self) -> str:
        return "; ".join(
            f"{count} {status} ({example})" for status, (count, example) in self.missing.items()
        )

    def _place_archived(
        self, shard: Shard, images: Iterator[LabelledImage]
    ) -> Iterator[LabelledImage]:
        """Place the images of an archive, which is read from its start to the last of them."""
        rows = enumerate(
            read_rows_in_child(
                self._child,
                READ_ARCHIVE,
                lambda number: (shard, number),
                READ_SECONDS,
                _row_instead,
                go_on=False,
            )
        )
        last: Row = {"status": CHANGED, "error": "its archive holds fewer images now"}
        for image in images:
            row = next((row for index, row in rows if index == image.index), None)
            if row is None:  # what broke the archive is the reason for the rest of it too
                self._leave_out(image, last["status"], last["error"])
                continue
            if row["status"] != OK:
                last = row
            if row["status"] == OK and row["image_id"] != image.image_id:
                self._leave_out(image, CHANGED, "its archive holds another image there")
            elif self._place_row(image, row):
                yield image
        next(rows, None)  # a process that has answered in full serves the next archive too

    def _place_loose(
        self, images: Iterator[LabelledImage], how: HowRead
    ) -> Iterator[LabelledImage]:
        """Place images that are files of their own, some at once."""
        while some := list(islice(images, FILES_AT_ONCE)):
            found = [(image, _member(image, how.imported)) for image in some]
            members = [member for _, member in found if member is not None]
            read = [member for member in members if not self._is_linked(member)]
            self._linked = [m for m in members if self._is_linked(m)][:1] or self._linked
            shard = Shard("pictures", "files", (*read, *self._linked), access=how.access)
            rows = self._read_loose(shard, len(read))
            for image, member in found:
                if member is None:
                    self._leave_out(image, UNREADABLE, NOT_BELOW)
                elif self._is_linked(member):
                    if self._place_link(image, member):
                        yield image
                elif self._place_row(image, next(rows)):
                    yield image
            next(rows, None)

    def _is_linked(self, member: Member) -> bool:
        return self._link and is_local(member.uri)

    def _read_loose(self, shard: Shard, count: int) -> Iterator[Row]:
        """Read the first `count` images of a shard. The store of the others shows that it answers.

        So an image whose store does not answer is left out, as it is where all images are read.
        """
        positions = tuple(range(count))
        return read_rows_in_child(
            self._child,
            READ_LOOSE,
            lambda number: (shard, positions[number:]),
            READ_SECONDS,
            _row_instead,
            go_on=True,
            rows=len(positions),
        )

    def _place_row(self, image: LabelledImage, row: Row) -> bool:
        """Write the bytes of an image. Returns whether there are any."""
        if row["status"] != OK:
            self._leave_out(image, row["status"], row["error"])
            return False
        encoded = bytes(row["encoded"])
        if not _may_be_copied(image, encoded[:HEAD_BYTES]):
            self._leave_out(image, UNDECODABLE, NO_IMAGE)
            return False
        self._folder.add(f"{self._images}/{image.name}", encoded)
        return True

    def _place_link(self, image: LabelledImage, member: Member) -> bool:
        """Link a local file. Returns whether the file is there as it was labelled."""
        try:
            fs, path = open_member(member, "image")
            with open(path, "rb") as file:  # a link to a file that nobody may read is of no use
                is_image = _may_be_copied(image, file.read(HEAD_BYTES))
                changed = member.etag != UNSEEN and not is_planned(fs, path, member)
        except (InputError, OSError) as error:
            self._leave_out(image, UNREADABLE, str(error))
            return False
        if not is_image:
            self._leave_out(image, UNDECODABLE, NO_IMAGE)
            return False
        if changed:
            self._leave_out(image, CHANGED, CHANGED_TEXT)
            return False
        self._folder.add_link(f"{self._images}/{image.name}", path)
        return True

    def _leave_out(self, image: LabelledImage, status: str, reason: str) -> None:
        count, example = self.missing.get(status, (0, ""))
        name = mask(image.image_id)
        example = example or printable(reason if reason.startswith(name) else f"{name}: {reason}")
        self.missing[status] = (count + 1, example)


def _may_be_copied(image: LabelledImage, head: bytes) -> bool:
    """Whether a file is an image, as far as its first bytes show.

    What `label` decoded is one. Nobody has opened what an import names, which has no version.
    """
    return image.etag is not None or looks_like_image(head)


def _row_instead(_: int, why: ChildFailed) -> Row:
    return {"status": UNREADABLE, "error": f"while it was read: {why}", "image_id": ""}


def _member(image: LabelledImage, imported: Imported | None) -> Member | None:
    """Return the object of an image that is a file of its own; None if it cannot be read."""
    if imported is not None:
        shard = imported.shard(image.uri)
        return None if shard is None else shard.members[0]
    return Member(image.uri, image.etag or UNSEEN, -1)


def _how_run_read(output: str, run: Manifest) -> HowRead:
    archives: dict[str, Shard] = {}
    access: str | None = None
    for table in read_plan(output, run["plan"]):
        for shard in shards_of_table(table.filter(pc.is_in(table["kind"], pa.array(ARCHIVES)))):
            archives[shard.shard] = shard
        if "access" in table.column_names and access is None:
            access = next(iter(table["access"].drop_null().to_pylist()), None)
    return HowRead(archives, access, read_import(output, run["run_id"]))
