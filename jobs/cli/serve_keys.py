"""`detr-batch serve-keys`: make, list and revoke the keys of `detr-batch serve`."""

import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.cli.options import add_command
from pipeline.storage.errors import InputError
from pipeline.storage.urls import mask, printable

_FILE = {"positional": True, "metavar": "FILE_OR_URL", "help": "the keys: a file, or s3://..."}


@dataclass(frozen=True)
class AddOptions:
    keys: str = field(metadata=_FILE)
    name: str = field(metadata={"help": "what the key is called in lists: a person or a program"})
    scope: str | None = field(
        default=None,
        metadata={"help": "keys of one scope share files and batches (default: one of its own)"},
    )
    requests_per_minute: int | None = field(
        default=None, metadata={"help": "most requests in a minute (default: no limit)"}
    )
    images_per_minute: int | None = field(
        default=None,
        metadata={
            "help": "most images of requests in a minute; batches may have 1440 times as many in "
            "24 hours beside them, and no lakes (default: no limit)"
        },
    )

    def check(self) -> None:
        """Raise InputError for limits below 1."""
        for name in ("requests_per_minute", "images_per_minute"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1")


@dataclass(frozen=True)
class ListOptions:
    keys: str = field(metadata=_FILE)
    json: bool = field(default=False, metadata={"help": "for programs"})


@dataclass(frozen=True)
class RevokeOptions:
    keys: str = field(metadata=_FILE)
    key: str = field(metadata={"positional": True, "help": "its id or name"})


def add(commands: Any) -> None:
    text = "Make, list and revoke the keys of `detr-batch serve`. A server reads them every 2 s."
    group = commands.add_parser("serve-keys", help="the keys of `serve`", description=text)
    below = group.add_subparsers(required=True, metavar="ACTION")
    add_command(
        below,
        "add",
        AddOptions,
        _add,
        help="make a key",
        description="Make a random key, and print it: it is kept as a hash alone, and cannot be "
        "shown again.",
    )
    add_command(below, "list", ListOptions, _list, help="list the keys, without their secrets")
    add_command(below, "revoke", RevokeOptions, _revoke, help="let a key open nothing any more")


def _add(options: AddOptions) -> int:
    from jobs.serve.http.keys import add_key

    options.check()
    key, secret = add_key(
        options.keys,
        options.name,
        options.scope,
        options.requests_per_minute,
        options.images_per_minute,
    )
    print(f"{key.id} of scope {key.scope}; its key, which is shown this once:", file=sys.stderr)
    print(secret)
    return 0


def _list(options: ListOptions) -> int:
    from jobs.serve.http.keys import read_keys

    keys = read_keys(options.keys)
    if options.json:
        rows = [asdict(key) for key in keys]
        for row in rows:
            del row["sha256"]
        print(json.dumps(rows, indent=1))
        return 0
    for key in keys:
        limits = [
            f"{limit} {kind}/min"
            for kind, limit in (
                ("requests", key.requests_per_minute),
                ("images", key.images_per_minute),
            )
            if limit is not None
        ]
        state = f"revoked {key.revoked}" if key.revoked else ", ".join(limits) or "no limits"
        print(printable(f"{key.id}  {key.created}  {key.name}  scope {key.scope}  {state}"))
    return 0


def _revoke(options: RevokeOptions) -> int:
    from jobs.serve.http.keys import revoke_key

    key = revoke_key(options.keys, options.key)
    print(f"revoked {key.id} ({key.name}) of {mask(options.keys)}", file=sys.stderr)
    return 0
