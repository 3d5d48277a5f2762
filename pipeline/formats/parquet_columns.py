"""Which columns of a Parquet file hold images, and which one holds ids.

A footer names columns and gives their types and sizes. It does not say which column of bytes holds
images. The names of columns put the candidates into an order here, and `parquet.py` looks at the
first bytes of their values.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.carry.arrow_types import is_bytes, is_list, is_text, storage_type, value_type

# Names of columns that hold images, and texts within such names, the likeliest first.
_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "bytes", "image_bytes", "photo", "picture")
_IMAGE = ("image", "img", "photo", "picture", "jpg", "jpeg", "png", "webp", "tif", "bmp", "pixel")
_CONTENT = ("content", "data", "bytes", "binary", "blob", "raw", "encoded", "file", "frame")
# Texts within names of images that accompany others.
_SECONDARY = (
    "thumb", "preview", "mask", "depth", "segment", "icon", "overlay", "heatmap", "saliency",
    "alpha", "normal_map", "annotation", "label", "small", "lowres", "low_res", "tiny", "edge",
)  # fmt: skip
# Texts and words of names of bytes that are no images, whatever else the name says.
_NO_IMAGE = ("hash", "embed", "feature", "checksum", "digest", "latent", "vector", "tensor")
_NO_IMAGE_WORDS = frozenset("id uuid guid sha md crc npy npz numpy matrix pickle pkl".split())
# Words of names of other files, unless the name has a text of _IMAGE too (`text_image`).
_OTHER_FILES = frozenset(
    "key token text caption json xml geom geometry wkb audio wav mp flac ogg sound pdf".split()
)
NO_IMAGE_RANK = 4  # of bytes whose name says that they are no images
_OTHER_FEATURES = ("Audio", "Video", "Pdf", "Nifti")  # Hugging Face's other structs of bytes
ID_COLUMNS = ("image_id", "id", "__key__", "key")
SMALLEST_IMAGE = 26  # bytes of the smallest GIF; shorter values of fixed size are hashes or ids
GROUPS_COMPARED = 64  # row groups in which the sizes of columns are compared
NAMES_SHOWN = 40  # columns that an error names
NAME_SHOWN = 60  # characters of each


class NoImageColumn(ValueError):
    """A Parquet file has no column of images, or not the column that the user named."""


@dataclass(frozen=True)
class Leaf:
    """A column of a Parquet file as it is stored: a field without fields of its own."""

    index: int  # among all leaves of the file
    path: tuple[str, ...]  # the names of the fields that lead to it; elements of lists have none
    type: pa.DataType
    is_listed: bool  # whether a row holds a list of values
    address: int | None = None  # index of the field `path` beside it, as Hugging Face writes it

    @property
    def name(self) -> str:
        """Its name as users write it, with a dot before each field of a struct."""
        return ".".join(self.path)


class Columns:
    """The leaves of a Parquet file, which its footer names. No page is read."""

    def __init__(self, parquet: pq.ParquetFile):
        schema = parquet.schema_arrow
        self.names = [field.name for field in schema]
        self.types = {field.name: field.type for field in reversed(list(schema))}
        self._features = _hugging_face_features(schema.metadata)
        self._count = 0
        self.leaves: list[Leaf] = []
        for field in schema:
            self._add_leaves(field.type, (field.name,), False)

    def _add_leaves(self, given: pa.DataType, path: tuple[str, ...], is_listed: bool) -> None:
        kind = storage_type(given)
        if pa.types.is_struct(kind):
            first = len(self.leaves)
            for child in kind:
                self._add_leaves(child.type, (*path, child.name), is_listed)
            self._note_address(first, path)
        elif is_list(kind):
            self._add_leaves(kind.value_type, path, True)
        else:  # a map is kept as one leaf, which holds neither images nor ids
            self.leaves.append(Leaf(self._count, path, given, is_listed))
            self._count += _number_of_leaves(kind)

    def _note_address(self, first: int, path: tuple[str, ...]) -> None:
        """Note in the leaf `bytes` of a struct at `path` that there is a `path` beside it."""
        places = {leaf.path: place for place, leaf in enumerate(self.leaves[first:], first)}
        image, address = places.get((*path, "bytes")), places.get((*path, "path"))
        if image is not None and address is not None and is_text(self.leaves[address].type):
            index = self.leaves[address].index
            self.leaves[image] = replace(self.leaves[image], address=index)

    def has(self, named: str) -> bool:
        """Whether there is a column, or a field of a column, that is called so."""
        return any(f"{one.name}.".startswith(f"{named}.") for one in self.leaves)

    def leaf_of(self, name: str) -> int | None:
        """The index of the first leaf of the first column with a name; None if there is none."""
        return next((leaf.index for leaf in self.leaves if leaf.path[0] == name), None)

    def has_candidates(self) -> bool:
        """Whether a column may hold images, by its type and its name."""
        return any(map(self._may_hold_images, self.leaves))

    def _may_hold_images(self, leaf: Leaf) -> bool:
        kind = value_type(leaf.type)
        is_short = pa.types.is_fixed_size_binary(kind) and kind.byte_width < SMALLEST_IMAGE
        return _holds_bytes(leaf) and not is_short and self.rank(leaf) < NO_IMAGE_RANK

    def image_candidates(
        self, named: str | None = None, size: Callable[[Leaf], int] = lambda leaf: 0
    ) -> list[Leaf]:
        """The leaves that may hold images, the likeliest first; of the column `named` if given.

        Among leaves whose names say as much, the one with the largest `size` is the first. Raises
        NoImageColumn if there is no candidate.
        """
        if named is None:
            found = [leaf for leaf in self.leaves if self._may_hold_images(leaf)]
            if not found:
                raise NoImageColumn(
                    f"no column of images among {self.names_as_text()}: if one of them holds "
                    "the bytes of images, name it with --image-column"
                )
        else:
            under = self._leaves_under(named, "--image-column")
            found = [leaf for leaf in under if _holds_bytes(leaf)]
            if not found:
                raise NoImageColumn(
                    f"the column {named} (--image-column) holds {_types_as_text(under)}, and no "
                    f"bytes of images; the columns are {self.names_as_text()}"
                )
        return sorted(found, key=lambda leaf: (*self._order(leaf), -size(leaf), leaf.index))

    def id_leaf(self, named: str | None = None) -> Leaf | None:
        """The leaf of the ids: that of the column `named`, or of the first of ID_COLUMNS.

        None if no column is named and none of ID_COLUMNS holds ids. Raises NoImageColumn if the
        named column is missing or holds no ids.
        """
        if named is None:
            usual = {leaf.name: leaf for leaf in reversed(self.leaves) if len(leaf.path) == 1}
            found = (usual[name] for name in ID_COLUMNS if name in usual)
            return next((leaf for leaf in found if _holds_ids(leaf)), None)
        under = self._leaves_under(named, "--id-column")
        if len(under) != 1 or not _holds_ids(under[0]):
            raise NoImageColumn(
                f"the column {named} (--id-column) holds {_types_as_text(under)}: ids are texts, "
                f"integers or UUIDs; the columns are {self.names_as_text()}"
            )
        return under[0]

    def _leaves_under(self, named: str, option: str) -> list[Leaf]:
        """The leaves of a column, or of a field of it, that a user named."""
        found = [one for one in self.leaves if f"{one.name}.".startswith(f"{named}.")]
        if not found:
            raise NoImageColumn(
                f"no column {named} ({option}): the columns are {self.names_as_text()}"
            )
        return found

    def names_as_text(self) -> str:
        """The names of the columns for an error, shortened where there are many."""
        shown = [_in_one_line(name) for name in self.names[:NAMES_SHOWN]]
        more = len(self.names) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")

    def rank(self, leaf: Leaf) -> int:
        """How likely a leaf of bytes holds the images, by its name alone.

        0: it is called an image. 1: it is called content. 2: the name does not say it. 3: it is
        called an image that accompanies another one. 4: it is called something else.
        """
        path = _meaningful(leaf.path)
        feature = self._features.get(path)
        if feature in _OTHER_FEATURES or (feature is None and _is_other(_separated(path[-1]))):
            return NO_IMAGE_RANK
        name = _separated(".".join(path))
        says_image = feature == "Image" or any(text in name for text in _IMAGE)
        if any(text in name for text in _SECONDARY):
            return 3
        if says_image:
            return 0
        return 1 if any(text in name for text in _CONTENT) else 2

    def _order(self, leaf: Leaf) -> tuple[int, bool, int]:
        """What a name says, for sorting."""
        meaningful = _meaningful(leaf.path)
        last = meaningful[-1].lower().rpartition(".")[2]
        exact = _NAMES.index(last) if last in _NAMES else len(_NAMES)
        return self.rank(leaf), self._features.get(meaningful) != "Image", exact

    def is_called_image(self, leaf: Leaf) -> bool:
        """Whether the name of a leaf says that it holds images."""
        return self.rank(leaf) <= 1


def size_of_leaf(metadata: pq.FileMetaData, leaf: Leaf) -> int:
    """The bytes of a leaf in the first row groups.

    Only a child process may ask for it: Arrow ends the process for footers that are damaged in some
    ways, and for columns that are encrypted.
    """
    groups = range(min(metadata.num_row_groups, GROUPS_COMPARED))
    columns = (metadata.row_group(group).column(leaf.index) for group in groups)
    return sum(column.total_uncompressed_size for column in columns)


def names_of_leaves(leaves: Sequence[Leaf]) -> str:
    """The names of leaves, in their order, for people."""
    return ", ".join(_in_one_line(leaf.name) for leaf in leaves[:NAMES_SHOWN])


def _in_one_line(name: str) -> str:
    """A name of a column, which a file may choose freely, for people."""
    return " ".join(name[:NAME_SHOWN].split())


def _number_of_leaves(kind: pa.DataType) -> int:
    """The number of columns in which Parquet stores values of a type."""
    kind = storage_type(kind)
    if pa.types.is_map(kind):
        return _number_of_leaves(kind.key_type) + _number_of_leaves(kind.item_type)
    if pa.types.is_struct(kind):
        return sum(_number_of_leaves(child.type) for child in kind)
    return _number_of_leaves(kind.value_type) if is_list(kind) else 1


def _holds_bytes(leaf: Leaf) -> bool:
    """Whether a leaf holds bytes, or could: a struct of Hugging Face without any has type null."""
    kind = value_type(leaf.type)
    return is_bytes(kind) or (leaf.address is not None and pa.types.is_null(kind))


def _holds_ids(leaf: Leaf) -> bool:
    kind = value_type(leaf.type)
    is_id = is_text(kind) or is_bytes(kind) or pa.types.is_integer(kind)
    return is_id and not leaf.is_listed


def _types_as_text(leaves: Sequence[Leaf]) -> str:
    kinds = sorted({("a list of " if leaf.is_listed else "") + str(leaf.type) for leaf in leaves})
    return " and ".join(kinds)[:200]


def _meaningful(path: tuple[str, ...]) -> tuple[str, ...]:
    """A path without the field `bytes` of a struct, whose name is that of the struct."""
    return path[:-1] if len(path) > 1 and path[-1] == "bytes" else path


def _is_other(name: str) -> bool:
    """Whether a name, as `_separated` gives it, is that of bytes that are no images."""
    words = {word.rstrip("s") for word in re.findall("[a-z]+", name)}
    says_image = any(text in name for text in _IMAGE)
    is_other_file = bool(words & _OTHER_FILES) and not says_image
    return is_other_file or bool(words & _NO_IMAGE_WORDS) or any(t in name for t in _NO_IMAGE)


def _separated(name: str) -> str:
    """A name in lower case, with `_` between words: `imageBytes` is `image_bytes`."""
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _hugging_face_features(metadata: dict[bytes, bytes] | None) -> dict[tuple[str, ...], str]:
    """The types that Hugging Face's metadata give to features ("Image"), by their paths.

    There are none if the metadata are damaged: they are a hint.
    """
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return dict(_typed_features(features, ()))
    except (KeyError, TypeError, ValueError, RecursionError, AttributeError):
        return {}


def _typed_features(feature: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(feature, list):
        for element in feature:
            yield from _typed_features(element, path)
        return
    kind = feature.get("_type")
    if isinstance(kind, str):
        yield path, kind
        if isinstance(feature.get("feature"), dict | list):
            yield from _typed_features(feature["feature"], path)
        return
    for name, child in feature.items():
        if isinstance(child, dict | list):
            yield from _typed_features(child, (*path, name))
