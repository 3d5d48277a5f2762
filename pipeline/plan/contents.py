"""Objects whose names do not say whether they are images: their first bytes do."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.formats.image_names import HEAD_BYTES, looks_like_image
from pipeline.formats.members import open_member
from pipeline.plan.listing import NO_IMAGE, UNNAMED, ListedObject
from pipeline.schema import Member
from pipeline.storage.files import read_object

LOOK_AT_ONCE = 16  # concurrent requests for first bytes; latency is the limit
# Objects of a plan that are looked into. It takes a request each, and there are lakes in which no
# object has an extension: those behind count as images, and their rows say so if they are none.
MOST_LOOKS = 10_000


class Looker:
    """Looks into the objects of one plan, MOST_LOOKS at most."""

    def __init__(self) -> None:
        self._left = MOST_LOOKS

    def name_kinds(self, found: Sequence[ListedObject]) -> list[ListedObject]:
        """The same objects; those of kind UNNAMED are "files" or NO_IMAGE now."""
        unnamed = [member for member, kind in found if kind == UNNAMED][: self._left]
        self._left -= len(unnamed)
        with ThreadPoolExecutor(LOOK_AT_ONCE) as pool:
            are_images = dict(zip(unnamed, pool.map(_may_be_image, unnamed), strict=True))
        kinds = {True: "files", False: NO_IMAGE}
        return [
            (member, kinds[are_images.get(member, True)] if kind == UNNAMED else kind)
            for member, kind in found
        ]


def _may_be_image(member: Member) -> bool:
    """Whether an object may be an image. If it cannot be read, its row will say why."""
    try:
        head = read_object(*open_member(member, "image"), HEAD_BYTES)
    except Exception:  # stores raise many types; the reader meets the same error, and reports it
        return True
    return looks_like_image(head)
