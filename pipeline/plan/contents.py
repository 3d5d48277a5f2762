"""Objects whose names do not say whether they are images: their first bytes do."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.formats.image_names import HEAD_BYTES, looks_like_image
from pipeline.formats.members import open_member
from pipeline.plan.listing import NO_IMAGE, UNNAMED, ListedObject
from pipeline.schema import Member
from pipeline.storage.explained_errors import describe_error
from pipeline.storage.files import StorageUnavailable, read_object
from pipeline.storage.retries import is_transient

LOOK_AT_ONCE = 16  # concurrent requests; latency is the limit
# Objects that the store does not deliver for now. Each takes the patience of retries.py.
MOST_FAILURES = LOOK_AT_ONCE
# Objects of a plan whose first bytes are read. It takes a request each, and there are lakes in
# which no object has an extension: those behind count as images, and their rows say so if they are
# none.
MOST_HEADS = 10_000

T = TypeVar("T")


class Looks:
    """Looks into objects of one plan, LOOK_AT_ONCE at a time."""

    def __init__(self) -> None:
        self._failures = 0

    def at(self, members: Sequence[Member], look: Callable[[Member], T]) -> dict[Member, T]:
        """What `look` returns for each member. Those for which it fails are absent.

        The reader meets the same error, and their rows say it. Raises StorageUnavailable if more
        than MOST_FAILURES cannot be had for now.
        """
        if not members:
            return {}
        with ThreadPoolExecutor(LOOK_AT_ONCE) as pool:
            found = zip(members, pool.map(lambda one: self._look(one, look), members), strict=True)
            return {member: seen[0] for member, seen in found if seen}

    def _look(self, member: Member, look: Callable[[Member], T]) -> tuple[T] | None:
        try:
            return (look(member),)
        except Exception as error:  # stores raise many types, and files break in many ways
            if is_transient(error):
                self._failures += 1
                if self._failures > MOST_FAILURES:
                    raise StorageUnavailable(describe_error(error, member.uri)) from error
            return None


class HeadReader:
    """Reads the first bytes of the objects of one plan that are UNNAMED, MOST_HEADS at most."""

    def __init__(self, looks: Looks) -> None:
        self._looks = looks
        self._left = MOST_HEADS

    def name_kinds(self, found: Sequence[ListedObject]) -> list[ListedObject]:
        """The same objects; those that were UNNAMED are "files" or NO_IMAGE now."""
        unnamed = [member for member, kind in found if kind == UNNAMED][: self._left]
        self._left -= len(unnamed)
        are_images = self._looks.at(unnamed, _is_image)
        kinds = {True: "files", False: NO_IMAGE}
        return [
            (member, kinds[are_images.get(member, True)] if kind == UNNAMED else kind)
            for member, kind in found
        ]


def _is_image(member: Member) -> bool:
    return looks_like_image(read_object(*open_member(member, "image"), HEAD_BYTES))
