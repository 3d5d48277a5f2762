"""What goes wrong in a way that people can act on. Without imports: it can always be said."""


class InputError(ValueError):
    """A mistake of the user's: one line that says what to do."""


class CommandFailed(RuntimeError):
    """A command ends without its result. The line says why, and what a repetition will do."""


class OutputError(RuntimeError):
    """OUTPUT is not as it must be, or another command has it. The line says what to do."""


class DamagedFile(OutputError):
    """A file of OUTPUT is not as it was written."""


class StorageUnavailable(RuntimeError):
    """A store that fails for a time, or for good: the run ends, and the next takes it up."""
