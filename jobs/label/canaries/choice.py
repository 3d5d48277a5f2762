"""Which canaries a command has: those it names, or those that OUTPUT has of its model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.label.canaries.images import digest_of, prepare_canaries, read_canaries
from jobs.label.canaries.options import NONE, CanaryOptions
from jobs.label.log.lines import print_line
from jobs.output.canaries import CanaryReference, has_canaries, read_canary_reference
from model.resize import ResizeRule
from pipeline.storage.errors import InputError
from pipeline.storage.urls import mask


@dataclass(frozen=True)
class Canaries:
    """The canaries of a run, with what OUTPUT recorded for them."""

    reference: CanaryReference  # without answers in the first run with them, or to be renewed
    is_recorded: bool  # whether OUTPUT has these images, and they are not renewed

    @property
    def digest(self) -> str:
        return digest_of(self.reference)


def choose_canaries(
    options: CanaryOptions,
    output: str,
    fingerprint: str,
    labels: Sequence[str],
    resize: ResizeRule,
) -> Canaries | None:
    """The canaries of a command, for the model with this fingerprint; None if it has none.

    Raises InputError for canaries that the model cannot have, that cannot be decoded, or that are
    others than those of OUTPUT.
    """
    if options.canaries == NONE:
        return None
    stored = read_canary_reference(output, fingerprint)
    if options.canaries is None:
        if stored is not None:
            return _recorded(stored, options.renew_canaries)
        if options.renew_canaries:
            raise InputError(
                f"--renew-canaries: {mask(output)} has no canaries of this model, this threshold "
                "and these options that decide boxes: name them with --canaries"
            )
        if has_canaries(output):
            print_line(
                f"this run is not proven: the canaries of {mask(output)} are of another model, "
                "of another threshold, or of other options that decide boxes, such as --nms and "
                "--tile; --canaries names some for these"
            )
        return None
    given = read_canaries(options.canaries, labels)
    if stored is not None and digest_of(stored) == digest_of(given):
        return _recorded(stored, options.renew_canaries)
    if stored is not None and not options.renew_canaries:
        raise InputError(
            f"{mask(output)} has other canaries of this model ({stored.source}): leave --canaries "
            "out to go on with them, or give --renew-canaries to put these in their place"
        )
    prepare_canaries(given, resize, enlarge=False)  # raises an error before anything is written
    return Canaries(given, is_recorded=False)


def _recorded(stored: CanaryReference, renew: bool) -> Canaries:
    if renew:
        return Canaries(replace(stored, answers={}, runs={}), is_recorded=False)
    return Canaries(stored, is_recorded=True)
