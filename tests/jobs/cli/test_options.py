"""A dataclass of options becomes a command line, and a command line becomes the dataclass."""

import argparse
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from jobs.cli import main, parser
from jobs.cli.options import Parser, add_command, add_options, options_from, words_of
from jobs.label.options import LabelOptions


@dataclass(frozen=True)
class Example:
    source: str = field(metadata={"positional": True, "help": "where from"})
    kind: str = field(metadata={"choices": ("a", "b"), "help": "what"})
    target: Path | None = field(default=None, metadata={"positional": True, "help": "where to"})
    count: int = field(default=3, metadata={"help": "how many"})
    share: float | None = field(default=None, metadata={"metavar": "X", "help": "how much"})
    page: bool = field(default=True, metadata={"help": "no page"})
    loud: bool = field(default=False, metadata={"one_of": "voice", "help": "with noise"})
    still: bool = field(default=False, metadata={"one_of": "voice", "help": "without"})
    place: str = field(default="here", metadata={"environment": "EXAMPLE_PLACE", "help": "where"})
    names: tuple[str, ...] = field(default=(), metadata={"parse": str.upper, "help": "again"})
    own: str | None = field(default=None, metadata={"flag": "--mine", "help": "of another name"})
    inner: int = 7  # not an option of the command line


def parse(*arguments: str) -> Example:
    example_parser = Parser(prog="example")
    add_options(example_parser, Example)
    return options_from(Example, vars(example_parser.parse_args(arguments)))


def test_defaults_are_those_of_the_dataclass() -> None:
    assert parse("s", "--kind", "a") == Example("s", "a")


def test_each_kind_of_field_is_set() -> None:
    arguments = ["s", "t", "--kind=b", "--count", "4", "--share", ".5", "--no-page", "--still"]
    arguments += ["--names", "a", "--names", "b", "--place", "there", "--mine", "o"]
    found = parse(*arguments)
    voice, names = (False, True), ("A", "B")
    assert found == Example("s", "b", Path("t"), 4, 0.5, False, *voice, "there", names, "o")


def test_the_environment_gives_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_PLACE", "away")
    assert parse("s", "--kind", "a").place == "away"
    assert parse("s", "--kind", "a", "--place", "home").place == "home"
    monkeypatch.setenv("EXAMPLE_PLACE", "")
    assert parse("s", "--kind", "a").place == "here"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: SOURCE, --kind"),
        (["s", "--kind", "c"], "invalid choice: 'c'"),
        (["s", "--kind", "a", "--count", "x"], "invalid int value: 'x'"),
        (["s", "--kind", "a", "--inner", "8"], "unrecognized arguments: --inner 8"),
        (["s", "--kind", "a", "--loud", "--still"], "not allowed with argument --loud"),
        ([""], "argument SOURCE: it is empty: give a value"),
        (["s", " ", "--kind", "a"], "argument TARGET: it is empty"),
        (["s", "--kind", ""], "argument --kind: it is empty"),
        (["s", "--kind", "a", "--mine="], "argument --mine: it is empty"),
        (["s", "--kind", "a", "--names", ""], "argument --names: it is empty"),
        (["s", "--kind", "a", "--count", ""], "argument --count: it is empty"),
        (["s", "--kind", "a", "--share", "1e999"], "argument --share: 1e999 is no finite number"),
        (["s", "--kind", "a", "--share", "nan"], "argument --share: nan is no finite number"),
        (["s", "--kind", "http://user:5ecret@host"], "invalid choice: 'http://host'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(*arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert line.endswith("(see example --help)")


def test_help_shows_the_defaults_that_mean_something() -> None:
    example_parser = Parser(prog="example")
    add_options(example_parser, Example)
    text = " ".join(example_parser.format_help().split())
    assert "how many (default: 3)" in text
    assert "no page --loud" in text
    assert "--no-page" in text


def test_a_command_is_run_with_its_options() -> None:
    received: list[Example] = []
    top = Parser(prog="top")

    def record_options(options: Example) -> int:
        received.append(options)
        return 0

    add_command(top.add_subparsers(), "go", Example, record_options, help="go")
    given: dict[str, Any] = vars(top.parse_args(["go", "s", "--kind", "a", "--count", "9"]))
    assert given.pop("run")(**given) == 0
    assert received[0].count == 9


def commands_of(described: argparse.ArgumentParser) -> dict[tuple[str, ...], list[argparse.Action]]:
    """The words of all commands below a parser, with their arguments."""
    found: dict[tuple[str, ...], list[argparse.Action]] = {}
    for action in described._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                inner = commands_of(below)
                found |= {(word, *words): arguments for words, arguments in inner.items()}
                if not inner:
                    found[(word,)] = below._actions
    return found


def another_value(option: Field[Any], hint: Any) -> Any:
    """Return a value of an option, whose type is `hint`, that is not its default."""
    if choices := option.metadata.get("choices"):
        return next(choice for choice in choices if choice != option.default)
    kinds = get_args(hint) or (hint,)
    if bool in kinds:
        return not option.default
    number = next((kind for kind in (int, float) if kind in kinds), None)
    return f"some {option.name}" if number is None else number(5.25)


def test_words_of_options_parse_to_the_same_options() -> None:
    """This must hold for every option, because `submit` passes them all on."""
    hints = get_type_hints(LabelOptions)
    values = {one.name: another_value(one, hints[one.name]) for one in fields(LabelOptions)}
    options = LabelOptions(**values)
    given = vars(parser().parse_args(["label", *words_of(options, LabelOptions)]))
    assert {name: given[name] for name in values} == values


@pytest.mark.parametrize("command", sorted(commands_of(parser())), ids=" ".join)
def test_no_argument_of_any_command_may_be_empty(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for action in commands_of(parser())[command]:
        if action.nargs == 0:
            continue
        given = [*action.option_strings[:1], ""]
        with pytest.raises(SystemExit) as end:
            parser().parse_args([*command, *given])
        assert end.value.code == 2
        assert "it is empty: give a value" in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class Trip:
    """Costs of the way.

    They are in kilometres.
    """

    way: int = field(default=1, metadata={"help": "how far"})


@dataclass(frozen=True)
class Journey(Trip):
    start: str = field(metadata={"positional": True, "help": "from where"})


def test_an_inherited_group_of_options_is_shown_together_after_the_others() -> None:
    journey_parser = Parser(prog="journey")
    add_options(journey_parser, Journey)
    *_, last = journey_parser.format_help().split("\n\n")
    assert last.split() == "costs of the way: --way WAY how far (default: 1)".split()
    found = options_from(Journey, vars(journey_parser.parse_args(["--way", "3", "home"])))
    assert found == Journey("home", way=3)
    assert words_of(found, Journey) == ["home", "--way", "3"]


@pytest.mark.parametrize("option", ["--annotations", "--images", "--validation-images"])
def test_a_url_is_said_where_a_path_is_needed(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "out", option, "s3://lake/a.json"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert f"argument {option}: s3://lake/a.json is a URL: give a path of this machine" in said
