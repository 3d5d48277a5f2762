"""What can go wrong with an OUTPUT, each with its end."""

from pipeline.storage.errors import OutputError
from pipeline.storage.lock import LockLost


class DamagedOutput(OutputError):
    """A document of OUTPUT is not what was written there. It says which, and what to do."""


class CommitLost(LockLost):
    """Another writer came between: nothing was committed, and nothing of this writer ever will."""


class CommitUnknown(OutputError):
    """The store does not say whether a commit was made. Nothing may be deleted."""
