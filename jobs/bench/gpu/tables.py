"""The results of a GPU bench as text for people."""

from collections.abc import Callable, Iterator
from typing import Any

from jobs.bench.detectors import FASTER_RCNN, OURS
from jobs.bench.gpu.fill import fill_as_text
from jobs.bench.gpu.journal import (
    CHOICE,
    CRASHED,
    CUT,
    END,
    ENVIRONMENT,
    FAILED,
    LEFT_OUT,
    REFUSED,
    TIMING,
    VALUE,
    VERDICT,
    Record,
)

Rates = dict[str, dict[str, Any]]  # rows by case

REASONS = {
    REFUSED: "wrong, so not timed",
    LEFT_OUT: "left out",
    FAILED: "failed",
    CRASHED: "crashed",
    CUT: "ended when its time was over",
}


def describe_results(records: list[Record]) -> str:
    """Describe each step in a paragraph, and add one about what was not measured."""
    paragraphs = [_header(records)]
    known = _known_rates(records)
    for step, describe in DESCRIBE.items():
        lines = list(describe([record for record in records if record["step"] == step], known))
        if lines:
            paragraphs.append("\n".join([step.upper(), *(f"  {line}" for line in lines)]))
    if missing := list(_missing(records)):
        paragraphs.append("\n".join(["NOT MEASURED", *(f"  {line}" for line in missing)]))
    return "\n\n".join(paragraphs)


def _header(records: list[Record]) -> str:
    """Describe the device and the versions of the last process."""
    found = next(r for r in reversed(records) if r["kind"] == ENVIRONMENT)
    row = found["row"]
    versions = {"torch": row["torch"], **found["versions"]}
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f"{row['device']}, {row['date']}, commit {row['git_sha']}\n{known}"


def _known_rates(records: list[Record]) -> Rates:
    """Return the rows of the step "rates", by model, precision, form and batch."""
    return {
        record["case"]: record["row"]
        for record in records
        if record["step"] == "rates" and record["kind"] == TIMING
    }


def _share(rate: float, known: Rates, case: str) -> str:
    """Return a rate's share of the detector's rate alone, where that was measured."""
    if case not in known:
        return ""
    return f", {rate / known[case]['images_per_second']:.0%} of the detector's rate on one size"


def _timings(records: list[Record]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield rows and their details."""
    for record in records:
        if record["kind"] == TIMING:
            yield record["row"], record["row"]["details"]


def _ceilings(records: list[Record], _: Rates) -> Iterator[str]:
    for record in records:
        if record["kind"] == VALUE:
            clocks = record["clocks"]
            beside = f"   {clocks['processors_mhz']} MHz, {clocks['watts']:.0f} W" if clocks else ""
            yield f"{record['case']:<6} {record['value']:>10,.4g} {record['unit']}{beside}"


def _gates(records: list[Record], _: Rates) -> Iterator[str]:
    for record in records:
        if record["kind"] == VERDICT:
            word = "right" if record["right"] else "WRONG"
            if "error" in record:
                beside = f"error {record['error']:.2g} of at most {record['tolerance']:.2g}"
            else:
                beside = "; ".join([record["summary"], *record["failures"]])
            yield f"{word}  {record['case']}: {beside}"


def _bits(records: list[Record], _: Rates) -> Iterator[str]:
    for record in records:
        if record["kind"] == VERDICT:
            yield f"{record['case']}: {record['summary']}"


def _rates(records: list[Record], _: Rates) -> Iterator[str]:
    for row, details in _timings(records):
        memory = f"{row['peak_memory_mib']:>7,} MiB" if row["peak_memory_mib"] else ""
        bound = f"{details['share_of_bound']:.0%} of the bound" if details else "bound not known"
        yield (
            f"{row['case']:<64} {row['images_per_second']:>8.1f} images/s "
            f"{row['p50_ms']:>8.2f} ms, {bound} {memory}"
        )
    for row, details in _timings(records):
        if "parts" in details:
            yield f"parts of {row['case']}:"
            yield from _parts(details["parts"])


def _parts(parts: dict[str, dict[str, float]]) -> Iterator[str]:
    """Describe the milliseconds of each part beside its bounds."""
    for name, part in parts.items():
        yield (
            f"  {name:<20} {part['share']:>6.1%} {part['ms']:>9.3f} ms   bound "
            f"{part['bound_ms']:>8.3f} (compute {part['compute_ms']:.3f}, memory "
            f"{part['memory_ms']:.3f})"
        )


def _mix(records: list[Record], known: Rates) -> Iterator[str]:
    for row, details in _timings(records):
        passes = ", ".join(f"{count} {kind}" for kind, count in details["passes"].items())
        rate = row["images_per_second"]
        alone = f"{row['case'].partition(',')[0]}, {row['precision']}, exact, batch {row['batch']}"
        yield (
            f"{row['case']}: {rate:.1f} images/s{_share(rate, known, alone)}, "
            f"{fill_as_text(details)} ({passes or 'all eager'})"
        )


def _peers(records: list[Record], known: Rates) -> Iterator[str]:
    ours: dict[str, Any] | None = None  # timed in turn with the peer whose row follows
    for theirs, _ in _timings(records):
        if theirs["subject"] == OURS or ours is None:
            ours = theirs
            continue
        yield (
            f"{theirs['case']}, batch {theirs['batch']}: {theirs['subject']} "
            f"({theirs['precision']}) {theirs['images_per_second']:.1f} images/s, ours in turn "
            f"{ours['images_per_second']:.1f}: {theirs['p50_ms'] / ours['p50_ms']:.2f} times"
            f"{_bound_of(ours, theirs, known)}"
        )


def _bound_of(ours: dict[str, Any], theirs: dict[str, Any], known: Rates) -> str:
    """Return both shares of the bound of ours; another model has another bound."""
    model = ours["case"].partition(",")[0]
    rate = known.get(f"{model}, {ours['precision']}, exact, batch {ours['batch']}")
    if rate is None or not rate["details"] or theirs["subject"] == FASTER_RCNN:
        return ""
    bound = rate["details"]["bound_ms"]
    return f" ({bound / theirs['p50_ms']:.0%} and {bound / ours['p50_ms']:.0%} of the bound)"


def _choices(records: list[Record], _: Rates) -> Iterator[str]:
    for record in records:
        if record["kind"] == CHOICE:
            yield f"{record['what']}: {record['chosen']}"
            for name, took in sorted(record["seconds"].items(), key=lambda item: float(item[1])):
                yield f"  {name:<24} {took * 1e6:>10.1f} us"
    for row, _ in _timings(records):
        yield f"{row['case']}, {row['precision']}, {row['subject']}: {row['p50_ms']:.3f} ms"


def _flow(records: list[Record], known: Rates) -> Iterator[str]:
    for row, details in _timings(records):
        if "cores_for_1000_images_per_second" in details:
            yield (
                f"{row['subject']}: {row['images_per_second']:,.0f} images/s, "
                f"{details['cores_for_1000_images_per_second']} cores for 1,000 images/s, "
                f"{details['bytes_per_image']:,.0f} bytes an image to the detector"
            )
            continue
        rate = details["images_per_second_steady"] or row["images_per_second"]
        alone = f"{row['case'].partition(',')[0]}, {row['precision']}, exact, batch {row['batch']}"
        yield (
            f"{row['case']}, {row['subject']}: {row['images_per_second']:.1f} images/s with the "
            f"start-up, {rate:.1f} steady{_share(rate, known, alone)}"
        )
        for name, value in details.items():
            yield f"  {name}: {value}"


def _missing(records: list[Record]) -> Iterator[str]:
    """Describe the cases that have no figure yet, and why."""
    found = (VALUE, VERDICT, TIMING, CHOICE, END)
    known = {(record["step"], record["case"]) for record in records if record["kind"] in found}
    for record in records:
        if record["kind"] in REASONS and (record["step"], record["case"]) not in known:
            name = ", ".join(filter(None, (record["step"], record["case"])))
            yield f"{name}: {REASONS[record['kind']]}. {record.get('reason', '')}".rstrip()


DESCRIBE: dict[str, Callable[[list[Record], Rates], Iterator[str]]] = {
    "ceilings": _ceilings,
    "gates": _gates,
    "bits": _bits,
    "rates": _rates,
    "mix": _mix,
    "peers": _peers,
    "choices": _choices,
    "flow": _flow,
}
