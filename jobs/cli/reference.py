"""`make reference`: write jobs/REFERENCE.md, with all options and environment variables.

    python -m jobs.cli.reference

The options come from the parser itself. A test compares the file with the text made here.
"""

import argparse
import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.cli import parser

FILE = Path(__file__).parents[1] / "REFERENCE.md"
HEAD = """# Reference

`make reference` writes this file from the code: do not edit it. What the commands are for stands in
[README.md](README.md).

Exit codes: 0 is done. 1 is a run that failed; the same command takes it up. 2 is bad arguments,
refused before any work. 3 is a finished run of which more images failed than
`--max-failed-fraction` allows. 4 is a run that `--max-usd`, `--max-hours` or `--until` ended; what
it labelled is published, and the same command goes on."""


@dataclass(frozen=True)
class Variable:
    """An environment variable: its default, the file that reads it, and its meaning."""

    name: str
    default: str
    file: str
    meaning: str


# All DETR_BATCH_* variables. A test searches the code for others.
VARIABLES = (
    Variable(
        "DETR_BATCH_LEASE_SECONDS",
        "60",
        "pipeline/storage/lock.py",
        "Seconds for which a command holds the lock of OUTPUT without renewing it. The next "
        "command waits this long for a holder that died.",
    ),
    Variable(
        "DETR_BATCH_STALL_SECONDS",
        "1800",
        "pipeline/isolation/watchdog.py",
        "Seconds without a labelled block after which a run ends with exit code 1.",
    ),
    Variable(
        "DETR_BATCH_STORE_PATIENCE",
        "180",
        "pipeline/storage/retries.py",
        "Seconds for which a request to a store is repeated before the run ends with exit code 1.",
    ),
    Variable(
        "DETR_BATCH_WEIGHTS",
        "",
        "model/named.py",
        "A folder with the weights of named models, called by their names (`detr.safetensors`): "
        "they go before the hub. `models --fetch` writes into it.",
    ),
    Variable(
        "DETR_BATCH_IMAGE_HOSTS",
        "",
        "pipeline/storage/image_hosts.py",
        "Which hosts and buckets a list of URLs may name: `public`, or `public,NAME,...` with "
        "hosts (`images.internal`, `10.0.0.7:9000`, `.corp.example`) and buckets "
        "(`s3://photos/2026`). `public` stands for every public address of the web. Not set: all. "
        "Each node reads its own: set it there, or by `submit --env`.",
    ),
    Variable(
        "DETR_BATCH_MAX_IMAGE_BYTES",
        "268435456",
        "pipeline/formats/rows.py",
        "Most bytes of an image, for lists from strangers. A larger one is `too_large`, and its "
        "download ends there. `serve` sets it for the addresses of batches. Each node reads its "
        "own, as above.",
    ),
    Variable(
        "DETR_BATCH_MAX_PIXELS",
        "100000000",
        "pipeline/stages/prepare.py",
        "Most pixels of an image, without tiles. A larger one is `too_many_pixels`. Each node "
        "reads its own, as above.",
    ),
    Variable(
        "DETR_BATCH_NOTIFY_SECRET",
        "",
        "jobs/label/notify/signature.py",
        "The key that signs what `label --notify` sends: 24 to 64 random bytes in base64, with or "
        "without `whsec_` before them. The receiver has it too.",
    ),
    Variable(
        "DETR_BATCH_FUZZ_CASES",
        "40",
        "tests/chaos/test_fuzz.py",
        "Tests only: broken files of each kind that are made and opened.",
    ),
    Variable(
        "DETR_BATCH_FAULTS",
        "",
        "tests/chaos/injected/sitecustomize.py",
        "Tests only: the folder that says which fault a process causes.",
    ),
    Variable(
        "DETR_BATCH_CALLS",
        "",
        "tests/chaos/injected/sitecustomize.py",
        "Tests only: calls that a detector on a CPU takes at once.",
    ),
)
# Variables of other programs that change a command. Those of store clients are not listed.
OTHERS = (
    ("RAY_ADDRESS", "The default of `label --address`."),
    ("RAY_API_SERVER_ADDRESS", "The default of `submit --address`."),
    ("OPENLINEAGE_API_KEY", "Sent as a bearer token with the events of `label --lineage`."),
    ("OPENLINEAGE_NAMESPACE", "The namespace of the job in these events, else `detr-batch`."),
    ("AWS_ENDPOINT_URL", "An S3 store that is not Amazon's."),
    ("XDG_CACHE_HOME", "Its folder `detr-batch` keeps weights that came from a URL."),
)


def reference() -> str:
    """The text of the whole document. It does not depend on environment variables."""
    with_address = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    before = {name: os.environ.pop(name) for name in with_address if name in os.environ}
    try:
        top = parser()
        parts = [HEAD, _section(top, "detr-batch COMMAND", ""), *_commands(top, "detr-batch")]
    finally:
        os.environ.update(before)
    return "\n\n".join([*parts, *_variables()]) + "\n"


def _commands(described: argparse.ArgumentParser, name: str) -> Iterator[str]:
    """The sections of all commands below one parser, in the order of its help."""
    for action in described._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, below in action.choices.items():
                yield _section(below, f"{name} {word}", helps.get(word, ""))
                yield from _commands(below, f"{name} {word}")


def _section(command: argparse.ArgumentParser, name: str, short: str) -> str:
    """The section of a command: heading, description (`short` if it has none), and arguments."""
    nested = any(isinstance(action, argparse._SubParsersAction) for action in command._actions)
    arguments = [action for action in command._actions if not action.option_strings and not nested]
    options = [action for action in command._actions if action.option_strings]
    shown = " ".join([name, *(_argument(action) for action in arguments)])
    lines = [f"## `{shown}`"]
    described = command.description or short[:1].upper() + short[1:] + "."
    lines += ["", *textwrap.wrap(described, 110, break_long_words=False, break_on_hyphens=False)]
    groups = command._action_groups[2:]  # the first two are those of argparse
    grouped = {id(action) for group in groups for action in group._group_actions}
    lines += _table(command, [a for a in [*arguments, *options] if id(a) not in grouped])
    for group in groups:
        lines += ["", f"### `{name}`: {group.title}", *_table(command, group._group_actions)]
    for group in command._mutually_exclusive_groups:
        members = ", ".join(f"`{one.option_strings[0]}`" for one in group._group_actions)
        lines += ["", f"Give only one of these: {members}."]
    return "\n".join(lines)


def _table(command: argparse.ArgumentParser, actions: list[argparse.Action]) -> list[str]:
    rows = [_row(command, action) for action in actions if action.dest != "help"]
    shown = [row for row in rows if row]
    return ["", "| | values | meaning |", "|---|---|---|", *shown] if shown else []


def _argument(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    return f"[{name}]" if action.nargs == "?" else name


def _row(command: argparse.ArgumentParser, action: argparse.Action) -> str:
    """One row of the table. "" for an argument that the help hides."""
    if action.help is argparse.SUPPRESS:
        return ""
    name = ", ".join(action.option_strings) or _argument(action)
    takes_value = action.nargs != 0
    values = ""
    if action.choices is not None:
        values = ", ".join(f"`{choice}`" for choice in action.choices)
    elif takes_value and action.option_strings:
        values = f"`{action.metavar or action.dest.upper()}`"
    meaning = command._get_formatter()._expand_help(action) if action.help else ""
    default = action.default
    if takes_value and "(default" not in meaning and default not in (None, argparse.SUPPRESS, []):
        meaning = f"{meaning} (default: {default})".strip()
    return f"| `{name}` | {_cell(values)} | {_cell(meaning)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _variables() -> Iterator[str]:
    yield "## Environment variables"
    ours = [
        f"| `{one.name}` | {one.default} | {one.meaning} Read in `{one.file}`. |"
        for one in VARIABLES
    ]
    yield "\n".join(["| ours | default | meaning |", "|---|---|---|", *ours])
    theirs = [f"| `{name}` | {meaning} |" for name, meaning in OTHERS]
    yield "\n".join(["| of others | meaning |", "|---|---|", *theirs])


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
    print(f"{FILE.name}: written")
