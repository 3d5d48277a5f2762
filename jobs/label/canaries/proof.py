"""The proof of a run: what all its detectors gave for the canaries is what was recorded for them.

Equal bits are demanded of detectors of equal computations (model/computation.py), and closeness of
others (comparison.py). In the first run, the model has to find the annotated objects.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jobs.label.canaries.choice import Canaries
from jobs.label.canaries.comparison import are_close, count_found, difference
from jobs.output.canaries import write_canary_record
from pipeline.schema import Receipt
from pipeline.stages.canaries import Answer, CanaryCheck, digest_of_answers
from pipeline.storage.errors import CommandFailed

LEAST_FOUND = 0.5  # share of the annotated objects; of published models on COCO's photos, about 0.6
CONSEQUENCE = (
    "Nothing is published, and what this run staged is deleted, as it cannot be trusted: the same "
    "command labels it anew"
)


class CanaryDeviation(CommandFailed):
    """A detector is not proven. What the run staged must not be taken up."""


class Proof:
    """Compares what detectors give with the reference, as it comes in."""

    def __init__(self, canaries: Canaries, labels: Sequence[str]):
        """`labels` are the class names of the model."""
        self.canaries, self.labels = canaries, labels
        reference = canaries.reference
        self._known = {
            computation: tuple(map(Answer.from_json, answers))
            for computation, answers in reference.answers.items()
        }
        self._givers = {
            computation: f"run {run_id}" for computation, run_id in reference.runs.items()
        }
        self._new: dict[str, tuple[Answer, ...]] = {}
        self._texts: set[str] = set()
        self._detectors: set[str] = set()
        # By text: of blocks whose detectors sent the answers before.
        self._digests: dict[str, CanaryCheck] = {}

    def checked(self, receipts: Iterable[Receipt]) -> Iterator[Receipt]:
        """Pass receipts on. Raises CanaryDeviation at the first that deviates."""
        for receipt in receipts:
            self.add(receipt.canaries)
            yield receipt

    def add(self, texts: Iterable[str]) -> None:
        """Compare texts of the column `canaries` of DETECTED. Raises CanaryDeviation."""
        for text in texts:
            if text not in self._texts:
                self._texts.add(text)
                check = CanaryCheck.from_text(text)
                self._detectors.add(check.detector)
                if check.answers:
                    self._compare(check)
                else:
                    self._digests[text] = check

    def unproven_texts(self) -> set[str]:
        """The texts of blocks that nothing proves, when those of all blocks were added.

        The block with the answers of their detector was lost with a worker or a node, and no
        detector that computes alike sent its own. Raises CanaryDeviation if a digest is not that of
        the answers of its computation, or if there is no text at all.
        """
        if not self._detectors:
            raise CanaryDeviation(f"no detector computed the canaries. {CONSEQUENCE}")
        unknown = {text: one for text, one in self._digests.items() if not self._is_known(one)}
        for check in unknown.values():
            if check.computation in self._known:
                raise _deviation(check, "images gave boxes that are not those of the others")
        return set(unknown)

    def is_complete(self) -> bool:
        """Whether every block is proven: some detector computed, and each digest is known."""
        return bool(self._detectors) and all(map(self._is_known, self._digests.values()))

    def summary(self) -> dict[str, Any]:
        """The entry `canaries` of report.json."""
        return {
            "images": len(self.canaries.reference.images),
            "source": self.canaries.reference.source,
            "detectors": len(self._detectors),
            "reference": sorted(set(self.canaries.reference.runs.values())),
        }

    def record(self, output: str, fingerprint: str, run_id: str) -> None:
        """Record in OUTPUT what computations gave that it has nothing of."""
        if self._new:
            answers = {
                computation: [answer.to_json() for answer in answers]
                for computation, answers in self._new.items()
            }
            images = None if self.canaries.is_recorded else self.canaries.reference
            write_canary_record(output, fingerprint, run_id, answers, images)

    def _is_known(self, check: CanaryCheck) -> bool:
        known = self._known.get(check.computation)
        return known is not None and digest_of_answers(known) == check.digest

    def _compare(self, check: CanaryCheck) -> None:
        if check.computation in self._known:
            self._demand_equal_bits(check, self._known[check.computation])
            return
        if self._known:
            computation, answers = next(iter(self._known.items()))
            self._demand_closeness(check, computation, answers)
        else:
            self._demand_objects(check)
        self._known[check.computation] = self._new[check.computation] = check.answers
        self._givers[check.computation] = _shown(check.detector)

    def _demand_equal_bits(self, check: CanaryCheck, known: Sequence[Answer]) -> None:
        for name, found, wanted in self._pairs(check, known):
            if found.error is not None or not found.equals(wanted):
                giver = self._givers[check.computation]
                raise _deviation(
                    check,
                    f"{name} differs from what {giver} gave ({_apart(found, wanted)})",
                )

    def _demand_closeness(
        self, check: CanaryCheck, computation: str, known: Sequence[Answer]
    ) -> None:
        pairs = list(self._pairs(check, known))
        apart = [difference(found, wanted) for _, found, wanted in pairs]
        is_failed = any(found.error is not None for _, found, _ in pairs)
        if is_failed or not are_close(apart):
            worst = min(range(len(pairs)), key=lambda number: apart[number].near_share)
            name, found, wanted = pairs[worst]
            giver = f"{self._givers[computation]} gave in {computation}"
            raise _deviation(
                check,
                f"{name} is further than kinds of devices differ from what {giver} "
                f"({_apart(found, wanted)})",
            )

    def _demand_objects(self, check: CanaryCheck) -> None:
        for name, found, _ in self._pairs(check, check.answers):
            if found.error is not None:
                raise _deviation(check, f"{name} fails ({found.error})")
        objects = [image.objects for image in self.canaries.reference.images]
        found_objects, whole = count_found(check.answers, objects, self.labels)
        if found_objects < LEAST_FOUND * whole:
            raise CanaryDeviation(
                f"the model finds {found_objects} of {whole} annotated objects of the canaries "
                f"({self.canaries.reference.source}), on {_shown(check.detector)}: look at its "
                f"weights, its device and the annotations. {CONSEQUENCE}"
            )

    def _pairs(
        self, check: CanaryCheck, known: Sequence[Answer]
    ) -> Iterator[tuple[str, Answer, Answer]]:
        names = [image.name for image in self.canaries.reference.images]
        yield from zip(names, check.answers, known, strict=True)


def _deviation(check: CanaryCheck, what: str) -> CanaryDeviation:
    return CanaryDeviation(
        f"{_shown(check.detector)} deviates in {check.computation}: the canary {what}. "
        f"{CONSEQUENCE}. Look first for a broken device, or for versions, a driver or a kernel "
        "that changed; --renew-canaries takes a change that is meant"
    )


def _apart(found: Answer, wanted: Answer) -> str:
    if found.error is not None:
        return found.error
    return difference(found, wanted).as_text()


def _shown(detector: str) -> str:
    """The name of a detector without its random end."""
    return f"the detector of {detector.rpartition(' ')[0]}"
