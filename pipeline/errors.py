"""What goes wrong in a way that people can act on. Without imports: it can always be said."""


class InputError(ValueError):
    """A mistake of the user's: one line that says what to do."""


class StorageUnavailable(RuntimeError):
    """A store that fails for a time, or for good: the run ends, and the next takes it up."""
