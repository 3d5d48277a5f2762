"""Errors of reading and writing an OUTPUT."""

from pipeline.storage.errors import OutputError
from pipeline.storage.lock import LockLost


class DamagedOutput(OutputError):
    """A document of OUTPUT is not as it was written. The message names it and says what to do."""


class CommitLost(LockLost):
    """Another writer appended to the log first. This writer committed nothing, and never can."""


class CommitUnknown(OutputError):
    """The store does not say whether a commit was made. No file may be deleted."""
