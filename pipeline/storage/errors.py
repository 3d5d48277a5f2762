"""Errors that users can act on. This module imports nothing, so that every module can import it."""


class InputError(ValueError):
    """The user made a mistake. The message is one line that says what to do."""


class CommandFailed(RuntimeError):
    """A command ends without its result. The message says why, and what a repetition will do."""


class OutputError(RuntimeError):
    """OUTPUT is damaged, or another command writes to it. The message says what to do."""


class DamagedFile(OutputError):
    """A file of OUTPUT differs from what was written."""


class StorageUnavailable(RuntimeError):
    """A store fails temporarily or permanently. The run ends, and the next command resumes it."""
