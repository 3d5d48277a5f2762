"""The lines of one logger, whatever the libraries that other tests load have done to logging."""

import logging

import pytest


def listen(name: str, caplog: pytest.LogCaptureFixture, patch: pytest.MonkeyPatch) -> None:
    """Let `caplog` have the warnings of the logger `name`.

    Some libraries set up logging as if it were their own: they disable all loggers that there are.
    """
    log = logging.getLogger(name)
    patch.setattr(log, "disabled", False)
    patch.setattr(log, "handlers", [caplog.handler])
    patch.setattr(logging.root.manager, "disable", logging.NOTSET)
    caplog.set_level(logging.WARNING, name)
