"""What goes wrong in a way that people can act on. Without imports: it can always be said."""


class UnknownName(ValueError):
    """A model or a precision that there is not, or not here; the line says what to take."""


class CheckpointError(ValueError):
    """Weights that cannot be used, and why: they are not there, or not those of the model."""


class DamagedCheckpoint(CheckpointError):
    """A weights file that is not whole, or not the one that was asked for."""


class CheckpointUnavailable(CheckpointError):
    """Weights that could not be fetched now."""
