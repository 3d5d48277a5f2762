"""The addresses to which a run is told. The address of a webhook is a secret as a rule."""

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.storage.errors import InputError
from pipeline.storage.urls import HIDDEN

WEB = ("http", "https")
OF_VARIABLE = "env:"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Receiver:
    """A web address to which an option sends."""

    option: str  # such as "--notify"
    url: str

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    def __str__(self) -> str:
        return f"{self.option} {shown(self.url)}"

    def check(self) -> None:
        """Raise InputError unless this is an address of the web."""
        try:
            parts = urlsplit(self.url)
            valid = bool(parts.hostname) and parts.port != 0  # a wrong port raises ValueError
        except ValueError:
            valid = False
        if not valid or not is_web(self.url) or re.search(r"\s", self.url):
            raise InputError(
                f"{self} is no address of the web: give https://..., or env:NAME for one in an "
                "environment variable"
            )


def is_web(address: str) -> bool:
    """Whether this is an address of the web. (protocols.py would be slow to import here.)"""
    protocol, separator, _ = address.partition("://")
    return bool(separator) and protocol.lower() in WEB


def shown(given: str) -> str:
    """What is shown of the value of an option: of a web address its host alone."""
    if given.startswith(OF_VARIABLE) and _NAME.fullmatch(given[len(OF_VARIABLE) :]):
        return given
    try:
        parts = urlsplit(given)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return HIDDEN
    return f"{parts.scheme}://{parts.hostname}{port}/{HIDDEN}" if parts.hostname else HIDDEN


def value_of(option: str, given: str) -> str:
    """The value of an option: `env:NAME` stands for that of a variable.

    Raises InputError if the variable is not set.
    """
    if not given.startswith(OF_VARIABLE):
        return given
    name = given[len(OF_VARIABLE) :]
    if _NAME.fullmatch(name) is None:
        raise InputError(f"{option} env:...: behind `env:` stands the name of a variable")
    value = os.environ.get(name, "").strip()
    if not value:
        raise InputError(f"{option} {given}: the environment variable {name} is not set")
    return value
