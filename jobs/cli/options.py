"""Make the options of a command from the fields of its dataclass.

A field is an option where its metadata has `help`:

    limit: int | None = field(default=None, metadata={"help": "label at most this many images"})

`--limit N` sets it. A field of type bool is a switch: `--spot` if the default of `spot` is False,
and `--no-page` if the default of `page` is True. A field without a default must be given. The
metadata may have further keys, all optional:

    positional   True: a positional argument
    choices      the allowed values
    metavar      the name of the value in the help
    environment  the environment variable that has the default
    one_of       the name of a group; the user may give only one option of a group
    flag         the option, if it differs from the name of the field
    parse        makes one value from one argument; the field is a tuple, the option may be repeated
    other_names  what other tools call a choice, in letters and digits; the error names ours
    other_flags  what other commands or tools call the option; the error names ours

A keyword-only dataclass from which that of a command inherits is a group of options: the help shows
them together, below the first line of that class's docstring.
"""

import argparse
import inspect
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from pipeline.storage.protocols import protocol_of
from pipeline.storage.urls import mask, printable

Options = TypeVar("Options")


SHOWN = 5  # unrecognized arguments that an error shows


class Parser(argparse.ArgumentParser):
    """A parser that prints an error in one line. The usage of many options would hide it."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.other_flags: dict[str, str] = {}  # the option that another name stands for

    def error(self, message: str) -> NoReturn:
        if found := re.fullmatch(r".*invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += _near(found[1], re.findall(r"[\w-]+", found[2]))
        as_line = self.get_default("as_line") or str
        line = printable(mask(f"{self.prog}: {message}"))
        self.exit(2, as_line(f"{line} (see {self.prog} --help)") + "\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse as argparse does, and let options stand before a positional that may be left out.

        argparse takes such a positional for left out when it meets an option.
        """
        found, rest = super().parse_known_args(args, namespace)
        for action in self._get_positional_actions():
            is_free = action.nargs == "?" and getattr(found, action.dest) is None
            if is_free and rest and not _is_option(rest[0]):
                setattr(found, action.dest, rest.pop(0))
        if rest and self._subparsers is None:  # here its options are known
            options = [name for name in self._option_string_actions if name.startswith("--")]
            shown = " ".join(rest[:SHOWN]) + (" ..." if len(rest) > SHOWN else "")
            if any(map(_is_option, rest)):
                given = rest[0].partition("=")[0]
                ours = self.other_flags.get(given)
                hint = f": did you mean {ours}?" if ours else _near(given, options)
            else:
                most = len(self._get_positional_actions())
                hint = f": of arguments without -- it takes {most or 'none'}"
                hint += " (put one with blanks, * or ? in quotes)" if most else ""
            self.error(f"unrecognized arguments: {shown}{hint}")
        return found, rest


def _near(word: str, known: Sequence[str]) -> str:
    """The most similar word that is known, as the end of a message."""
    near = get_close_matches(word, known, n=1)
    return f": did you mean {near[0]}?" if near else ""


def _is_option(word: str) -> bool:
    """Whether argparse takes a word for an option, and not for a text such as `-- SQL`."""
    return word.startswith("-") and word != "-" and " " not in word


def add_command(
    commands: Any,
    name: str,
    kind: type[Options],
    run: Callable[[Options], int],
    *,
    help: str,
    description: str | None = None,
    again: str | None = None,
    as_line: Callable[[str], str] | None = None,
) -> argparse.ArgumentParser:
    """Add the command `name`. It calls `run` with an instance of the dataclass `kind`.

    `again` is the text that an interrupted command prints about running it again. `as_line` is the
    form of its lines on stderr, if they have one.
    """
    parser: Parser = commands.add_parser(name, help=help, description=description)
    add_options(parser, kind)
    parser.set_defaults(run=lambda **given: run(options_from(kind, given)))
    if again is not None:
        parser.set_defaults(again=again)
    if as_line is not None:
        parser.set_defaults(as_line=as_line)
    return parser


def options_from(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """Make an instance of the dataclass `kind` from the parsed arguments."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def add_options(parser: Parser, kind: type) -> None:
    """Add an argument for each field of the dataclass `kind` that is an option."""
    hints = get_type_hints(kind)
    groups: dict[str, Any] = {}
    for field in options_of(kind):
        target: Any = parser
        if name := field.metadata.get("one_of"):
            if name not in groups:
                groups[name] = parser.add_mutually_exclusive_group()
            target = groups[name]
        elif field.kw_only is True and (title := _title(kind, field.name)):
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            target = groups[title]
        for other in field.metadata.get("other_flags", ()):
            parser.other_flags[other] = _flag(field)
        names, keywords = _argument(field, hints[field.name])
        target.add_argument(*names, **keywords)


def _title(kind: type, name: str) -> str:
    """The title of the group that has a field, from its class's docstring. "" if `kind` has it."""
    group = next(base for base in kind.__mro__ if name in inspect.get_annotations(base))
    first = (group.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return "" if group is kind else first[:1].lower() + first[1:]


def options_of(kind: type) -> list[Field[Any]]:
    """The fields of a dataclass that are options; those of keyword-only groups come last."""
    found = [field for field in fields(kind) if "help" in field.metadata]
    return sorted(found, key=lambda field: field.kw_only is True)


def words_of(options: Any, kind: type) -> list[str]:
    """The arguments of a command line that gives the fields of `kind` the values of `options`.

    Default values are left out. Positional arguments come first.
    """
    positional, named = [], []
    for field in options_of(kind):
        value = getattr(options, field.name)
        if field.metadata.get("positional"):
            positional += [] if value is None else [str(value)]
        elif value == field.default:
            continue
        elif isinstance(value, bool):
            named.append(_flag(field))
        else:
            named += [_flag(field), str(value)]
    return [*positional, *named]


def _flag(field: Field[Any]) -> str:
    own = field.metadata.get("flag")
    prefix = "--no-" if field.default is True else "--"
    return str(own or prefix + field.name.replace("_", "-"))


def _argument(field: Field[Any], hint: Any) -> tuple[Sequence[str], dict[str, Any]]:
    """The arguments of `add_argument` for a field with the type `hint`."""
    metadata = field.metadata
    assert field.default != "", f"{field.name}: None stands for an option that is not given"
    keywords: dict[str, Any] = {"help": _help(field)}
    keywords |= {key: metadata[key] for key in ("choices", "metavar") if key in metadata}
    if metadata.get("positional"):
        keywords = {"metavar": field.name.upper(), "type": _type(hint), **keywords}
        if field.default is not MISSING:
            keywords |= {"nargs": "?", "default": field.default}
        return [field.name], keywords
    keywords["dest"] = field.name
    if hint is bool:
        keywords["action"] = "store_false" if field.default is True else "store_true"
        return [_flag(field)], keywords
    if "parse" in metadata:
        return [_flag(field)], {
            **keywords, "action": "append", "type": _value(metadata["parse"]), "default": []
        }  # fmt: skip
    others = metadata.get("other_names")
    keywords["type"] = _choice(others) if others else _type(hint)
    if field.default is MISSING:
        keywords["required"] = True
    else:
        variable = metadata.get("environment")
        given = os.environ.get(variable, "").strip() if variable else ""
        keywords["default"] = given or field.default
    return [_flag(field)], keywords


def _type(hint: Any) -> Callable[[str], Any]:
    """The type of a value: str, int, float or Path. A type with None gives the type without it."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    assert len(kinds) == 1 and kinds[0] in (str, int, float, Path), hint
    return _value(_local_path if kinds[0] is Path else kinds[0])


def _local_path(text: str) -> Path:
    """A path of this machine. Of a URL, Path would make one slash of two."""
    if protocol_of(text) is not None:
        raise argparse.ArgumentTypeError(f"{mask(text)} is a URL: give a path of this machine")
    return Path(text)


def _choice(other_names: Mapping[str, str]) -> Callable[[str], str]:
    """The conversion of a choice, which refuses the names of other tools and says ours."""

    def convert(text: str) -> str:
        ours = other_names.get(re.sub(r"[\W_]", "", text).lower())
        if ours is not None and text != ours:
            raise argparse.ArgumentTypeError(f"invalid choice: '{text}': did you mean {ours}?")
        return str(_value(str)(text))

    return convert


def _value(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """The conversion of an argument that refuses an empty one, which scripts give by mistake.

    A variable that is not set gives one (`--delete "$RUN"`), and nobody means by it that the option
    is not given. Infinite numbers and NaN are refused too.
    """

    def convert(text: str) -> Any:
        if not text.strip():
            raise argparse.ArgumentTypeError("it is empty: give a value")
        value = kind(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is no finite number")
        return value

    convert.__name__ = kind.__name__  # argparse names it: "invalid int value"
    return convert


def _help(field: Field[Any]) -> str:
    """The help of a field, with its default if the default has a meaning."""
    text = str(field.metadata["help"])
    complete = "(default" in text or isinstance(field.default, bool)
    if complete or field.default is MISSING or field.default in (None, ()):
        return text
    default = f"{field.default:g}" if isinstance(field.default, float) else field.default
    return f"{text} (default: {default})"
