"""Numbers in environment variables."""

import os

from pipeline.storage.errors import InputError


def number_of_variable(name: str, default: float) -> float:
    """The number in an environment variable; `default` if it is not set, or empty.

    Raises InputError if it holds no number.
    """
    text = os.environ.get(name)
    if not text:
        return default
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{name}={text}: give a number, such as {default:g}") from error
