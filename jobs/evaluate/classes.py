"""Match the classes of an OUTPUT with the categories of an annotation file."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.storage.files import InputError

NAMES, ALIKE, NUMBERS = "names", "alike", "numbers"  # how `matched_classes` compares
_SHOWN = 3  # names in an error


class Label(NamedTuple):
    """A class of OUTPUT; its name is "" where a box has none."""

    label_id: int
    name: str


@dataclass(frozen=True)
class MatchedClasses:
    """Labels of OUTPUT that are classes of the annotations."""

    rule: str  # NAMES, ALIKE or NUMBERS
    ids: dict[Label, int]  # category ids
    unknown: list[str]  # labels that are no class of the annotations
    respelt: list[str]  # pairs that only ALIKE matches, or, by ALIKE, that it has matched
    renumbered: list[str]  # pairs of one number and different names, by NUMBERS


def matched_classes(
    detected: Sequence[Label], model: Sequence[str], classes: Mapping[int, str], rule: str
) -> MatchedClasses:
    """Match labels with categories.

    NAMES ignores case, and spaces around names. ALIKE takes names that have the same letters and
    digits as well, such as `traffic_light` and `Traffic light`. NUMBERS takes the category whose id
    is the number of the label.

    Args:
        detected: the labels of boxes.
        model: all names of classes that the model knows, as far as OUTPUT says; a model that knows
            a category and has found no object of it is no mismatch.
        classes: names by category id.
        rule: NAMES, ALIKE or NUMBERS.

    Raises InputError if nothing matches, or if two categories have the name of one label.
    """
    if rule == NUMBERS:
        return _matched_by_number(detected, classes)
    exact, alike = _Categories(classes, _plain), _Categories(classes, _letters)
    ids: dict[Label, int] = {}
    respelt: dict[str, None] = {}
    for label in detected:
        if exact.holds(label.name):
            ids[label] = exact.only(label.name)
        elif alike.holds(label.name):
            respelt[f"{label.name} = {classes[alike.any(label.name)]}"] = None
            if rule == ALIKE:
                ids[label] = alike.only(label.name)
    categories = exact if rule == NAMES else alike
    named = sorted({name for name in (*model, *(one.name for one in detected)) if _plain(name)})
    if (named or detected) and not any(map(categories.holds, named)):
        raise InputError(_describe_mismatch(named, classes, detected, list(respelt)))
    unknown = {label.name for label in detected if label not in ids and _plain(label.name)}
    return MatchedClasses(rule, ids, sorted(unknown), list(respelt), [])


class _Categories:
    """Categories by their simplified names."""

    def __init__(self, classes: Mapping[int, str], simplify: Callable[[str], str]):
        self._simplify = simplify
        self._ids: defaultdict[str, list[int]] = defaultdict(list)
        for class_id, name in classes.items():
            if _plain(name):
                self._ids[simplify(name)].append(class_id)

    def holds(self, name: str) -> bool:
        return self._simplify(name) in self._ids

    def any(self, name: str) -> int:
        """The first category of a name that these hold."""
        return self._ids[self._simplify(name)][0]

    def only(self, name: str) -> int:
        """The category of a name that these hold. InputError if several have the name."""
        found = self._ids[self._simplify(name)]
        if len(found) > 1:
            raise InputError(f"the categories {found[0]} and {found[1]} are both called {name}")
        return found[0]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", " ".join(name.split())).casefold()


def _letters(name: str) -> str:
    """The letters and digits of a name; the name itself if it has none."""
    plain = unicodedata.normalize("NFKC", _plain(name))
    return "".join(sign for sign in plain if sign.isalnum()) or plain


def _describe_mismatch(
    named: Sequence[str],
    classes: Mapping[int, str],
    detected: Sequence[Label],
    respelt: Sequence[str],
) -> str:
    """The text of the error where no name is a category's, with options that would match some."""
    pairs = [
        f"{label_id} {name or '(no name)'} = {classes[label_id]}"
        for label_id, name in detected
        if label_id in classes
    ]
    hints = []
    if respelt:
        hints.append(f"--by-name takes them for the same ({_listed(respelt)})")
    if pairs:
        hints.append(f"--match numbers takes equal numbers for equal classes ({_listed(pairs)})")
    if not hints:
        hints.append("give the annotations of the classes that the model knows")
    ours = f"no class of OUTPUT ({_listed(named)})" if named else "no box of OUTPUT"
    theirs = _listed(list(classes.values()))
    return (
        f"{ours} has the name of a category of the annotations ({theirs}), so nothing can be "
        f"compared: {', and '.join(hints)}"
    )


def _matched_by_number(detected: Sequence[Label], classes: Mapping[int, str]) -> MatchedClasses:
    ids = {label: label.label_id for label in detected if label.label_id in classes}
    others = [label for label in detected if label not in ids]
    if detected and not ids:
        raise InputError(
            f"no class of OUTPUT ({_listed([f'{one.label_id} {one.name}' for one in others])}) has "
            f"the number of a category of the annotations "
            f"({_listed([f'{number} {name}' for number, name in classes.items()])})"
        )
    pairs = {
        f"{label_id} {name or '(no name)'} = {classes[label_id]}": None
        for label_id, name in ids
        if _plain(name) != _plain(classes[label_id])
    }
    unknown = sorted({one.name or f"number {one.label_id}" for one in others})
    return MatchedClasses(NUMBERS, ids, unknown, [], list(pairs))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
