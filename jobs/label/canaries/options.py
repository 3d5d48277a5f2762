"""The options of canaries, which `label` and `submit` share."""

from dataclasses import dataclass, field

from pipeline.storage.errors import InputError

RENDERED, NONE = "rendered", "none"


@dataclass(frozen=True, kw_only=True)
class CanaryOptions:
    """The images with known boxes that prove a run."""

    canaries: str | None = field(
        default=None,
        metadata={
            "metavar": "rendered|ANNOTATIONS|none",
            "help": "images with known boxes that all detectors compute too; the run is refused if "
            "their boxes deviate from what OUTPUT recorded: scenes that come with the package, for "
            "shapes-tiny; images beside an annotation file in COCO's format (default: those that "
            "OUTPUT has of this model)",
        },
    )
    renew_canaries: bool = field(
        default=False,
        metadata={
            "help": "record what this run gives for the canaries as the new reference, after a "
            "change of versions that is meant"
        },
    )

    def check_canaries(self) -> None:
        """Raise InputError for options that contradict one another."""
        if self.renew_canaries and self.canaries == NONE:
            raise InputError("--renew-canaries with --canaries none: give one of them")
