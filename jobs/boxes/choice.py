"""What the options that choose boxes mean for the classes of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from jobs.boxes.options import BoxOptions, SuppressionOptions
from jobs.boxes.pairs import parse_pairs, score_of
from pipeline.stages.box_rules import BoxRules
from pipeline.storage.errors import InputError
from pipeline.storage.urls import printable

SHOWN = 5  # classes in an error
Names = Mapping[int, str]


@dataclass(frozen=True)
class BoxChoice:
    """Rules for boxes, and the classes before and after them."""

    rules: BoxRules
    own: Names  # the named classes of the model, by number
    names: Names  # those that the boxes are of afterwards

    @property
    def is_default(self) -> bool:
        """Whether every box stays as it is."""
        return self.rules == BoxRules() and self.names == self.own

    def kept_of(self, classes: Names) -> dict[int, str]:
        """The classes that boxes of these `classes` of the model can be of afterwards."""
        chosen, new = self.rules.classes, dict(self.rules.renamed)
        numbers = {new.get(k, k) for k in classes if chosen is None or k in chosen}
        return {number: name for number, name in self.names.items() if number in numbers}

    def labels(self, count: int) -> tuple[str, ...]:
        """The names of `count` classes by number; "" is a number that stands for no class."""
        return tuple(self.names.get(number, "") for number in range(count))

    def as_document(self) -> dict[str, Any]:
        """All that decides which boxes there are, in JSON's types, without what is the default."""
        default = BoxRules()
        found: dict[str, Any] = {
            one.name: asdict(self.rules)[one.name]
            for one in fields(BoxRules)
            if getattr(self.rules, one.name) != getattr(default, one.name)
        }
        changed = {k: name for k, name in self.names.items() if name != self.own.get(k)}
        return {**found, "names": changed} if changed else found


def named_classes(labels: Sequence[str]) -> dict[int, str]:
    """The classes of a model by number, without numbers that stand for no class."""
    return {number: name for number, name in enumerate(labels) if name}


def numbers_of_class(classes: Names, word: str) -> list[int]:
    """The numbers of the classes that a name, or else a number, stands for."""
    if found := [number for number, name in classes.items() if name == word]:
        return found
    return [int(word)] if word.isdecimal() and int(word) in classes else []


def suppression_rules(options: SuppressionOptions) -> BoxRules:
    """The rules of options that do not depend on classes. Raises InputError for wrong values."""
    options.check_suppression()
    return BoxRules(nms=options.nms, nms_across_classes=options.nms_across_classes)


def choose_boxes(options: BoxOptions, classes: Names, score_threshold: float) -> BoxChoice:
    """What options mean for a model with these named `classes`.

    `score_threshold` is that of classes without a threshold of their own. Rules that change nothing
    are left out, so that equal choices are equal.

    Raises InputError for classes that the model does not have, thresholds out of range, and names
    that overlap.
    """
    options.check_boxes()
    renaming = _Renaming(classes, options.rename)
    known = _Classes(classes, renaming.new_names)
    chosen = _chosen(known, options.classes)
    thresholds = {
        number: least
        for number, least in _thresholds(known, options.thresholds).items()
        if least != score_threshold and (chosen is None or number in chosen)
    }
    moved = {old: new for old, new in renaming.numbers.items() if old != new}
    rules = BoxRules(
        chosen,
        tuple(sorted(thresholds.items())),
        tuple(sorted(moved.items())),
        options.min_size,
        options.nms,
        options.nms_across_classes,
    )
    return BoxChoice(rules, classes, renaming.names_afterwards())


class _Classes:
    """The classes of a model, which users give by name or number."""

    def __init__(self, names: Names, new_names: Sequence[str] = ()):
        self.names, self.new_names = names, new_names

    def numbers(self, word: str, option: str) -> list[int]:
        """The numbers of a class. InputError if there is none of this name or number."""
        if found := numbers_of_class(self.names, word):
            return found
        raise InputError(f"{option}: there is no class {printable(word)}{self._hint(word)}")

    def _hint(self, word: str) -> str:
        if word in self.new_names:
            return ", which is a new name of --rename: give the old ones"
        known = list(dict.fromkeys(self.names.values()))
        by_letters = {name.casefold(): name for name in known}
        if near := get_close_matches(word.casefold(), by_letters, n=1):
            return f": did you mean {printable(by_letters[near[0]])}?"
        shown = ", ".join(map(printable, known[:SHOWN])) or "none"
        return f": the classes are {shown}" + (
            f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
        )


def _chosen(known: _Classes, given: str | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    words = [word.strip() for word in given.split(",") if word.strip()]
    if not words:
        raise InputError(f"--classes {printable(given)}: give names or numbers with commas between")
    found = sorted({number for word in words for number in known.numbers(word, "--classes")})
    return None if found == sorted(known.names) else tuple(found)


def _thresholds(known: _Classes, given: str | None) -> dict[int, float]:
    found: dict[int, float] = {}
    for word, value in [] if given is None else parse_pairs(given, "--thresholds"):
        least = score_of(word, value)
        for number in known.numbers(word, "--thresholds"):
            if number in found:
                raise InputError(f"--thresholds: the class {printable(word)} stands there twice")
            found[number] = least
    return found


class _Renaming:
    """New names of classes.

    A new name that a class of the model has takes the number of that class. Any other takes the
    lowest number of the classes that are renamed to it.
    """

    def __init__(self, classes: Names, given: str | None):
        """Raises InputError for unknown classes, no names, and names that overlap."""
        self._classes = classes
        self._new: dict[int, str] = {}
        known = _Classes(classes)
        for word, name in [] if given is None else parse_pairs(given, "--rename"):
            if not isinstance(name, str) or not name.strip():
                raise InputError(f"--rename: {printable(word)} needs a name, which is a text")
            for number in known.numbers(word, "--rename"):
                if number in self._new:
                    raise InputError(f"--rename: the class {printable(word)} is renamed twice")
                self._new[number] = name.strip()
        self._refuse_overlaps()

    def _refuse_overlaps(self) -> None:
        for number, name in self._new.items():
            for other, its_name in self._classes.items():
                if its_name == name and self._new.get(other, name) != name:
                    raise InputError(
                        printable(
                            f"--rename: {self._classes[number]} becomes {name}, and {name} itself "
                            f"becomes {self._new[other]}: give each class its last name"
                        )
                    )

    @property
    def new_names(self) -> list[str]:
        return list(self._new.values())

    @cached_property
    def numbers(self) -> dict[int, int]:
        """The new number of each class that is renamed."""
        return {old: self._number_of(name) for old, name in self._new.items()}

    def _number_of(self, name: str) -> int:
        own = [number for number, its_name in self._classes.items() if its_name == name]
        return min(own or [old for old, new in self._new.items() if new == name])

    def names_afterwards(self) -> dict[int, str]:
        stay = {k: name for k, name in self._classes.items() if k not in self._new}
        taken = {self.numbers[old]: name for old, name in self._new.items()}
        return dict(sorted({**stay, **taken}.items()))
