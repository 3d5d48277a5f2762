"""A dataclass becomes a command line, and a command line that dataclass."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import parser
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
    own: str = field(default="", metadata={"flag": "--mine", "help": "of another name"})
    inner: int = 7  # nothing for the command line


def parsed(*words: str) -> Example:
    made = Parser(prog="example")
    add_options(made, Example)
    return options_from(Example, vars(made.parse_args(words)))


def test_defaults_are_those_of_the_dataclass() -> None:
    assert parsed("s", "--kind", "a") == Example("s", "a")


def test_each_kind_of_field_is_set() -> None:
    words = ["s", "t", "--kind=b", "--count", "4", "--share", ".5", "--no-page", "--still"]
    words += ["--names", "a", "--names", "b", "--place", "there", "--mine", "o"]
    found = parsed(*words)
    voice, names = (False, True), ("A", "B")
    assert found == Example("s", "b", Path("t"), 4, 0.5, False, *voice, "there", names, "o")


def test_the_environment_gives_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_PLACE", "away")
    assert parsed("s", "--kind", "a").place == "away"
    assert parsed("s", "--kind", "a", "--place", "home").place == "home"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: SOURCE, --kind"),
        (["s", "--kind", "c"], "invalid choice: 'c'"),
        (["s", "--kind", "a", "--count", "x"], "invalid int value: 'x'"),
        (["s", "--kind", "a", "--inner", "8"], "unrecognized arguments: --inner 8"),
        (["s", "--kind", "a", "--loud", "--still"], "not allowed with argument --loud"),
        (["s", "--kind", "http://user:5ecret@host"], "invalid choice: 'http://host'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parsed(*words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert line.endswith("(see example --help)")


def test_help_has_the_defaults_that_say_something() -> None:
    made = Parser(prog="example")
    add_options(made, Example)
    text = " ".join(made.format_help().split())
    assert "how many (default: 3)" in text
    assert "no page --loud" in text
    assert "--no-page" in text


def test_a_command_is_run_with_its_options() -> None:
    run: list[Example] = []
    top = Parser(prog="top")

    def keep(options: Example) -> int:
        run.append(options)
        return 0

    add_command(top.add_subparsers(), "go", Example, keep, help="go")
    given: dict[str, Any] = vars(top.parse_args(["go", "s", "--kind", "a", "--count", "9"]))
    assert given.pop("run")(**given) == 0
    assert run[0].count == 9


def other(name: str, default: Any, choices: tuple[str, ...] | None) -> Any:
    """A value that is not the default."""
    if choices:
        return next(choice for choice in choices if choice != default)
    if isinstance(default, bool):
        return not default
    if name == "limit" or isinstance(default, int):
        return 5
    return 0.25 if name == "usd_per_hour" or isinstance(default, float) else f"some {name}"


def test_words_give_each_option_of_label_again() -> None:
    """Whatever is declared: `submit` depends on it."""
    values = {
        one.name: other(one.name, one.default, one.metadata.get("choices"))
        for one in fields(LabelOptions)
    }
    options = LabelOptions(**values)
    given = vars(parser().parse_args(["label", *words_of(options, LabelOptions)]))
    assert {name: given[name] for name in values} == values
