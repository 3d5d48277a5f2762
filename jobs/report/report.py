"""`detr-batch report`: what committed runs did, and what they cost."""

from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

from jobs.accounting.estimate import Estimate, accuracy, describe_source
from jobs.accounting.figures import format_duration, format_figure, format_number
from jobs.accounting.plurals import counted
from jobs.report.reports import labelling_runs, manifest_of, read_report, with_tables
from jobs.report.text import NOT_MEASURED, compare_with_reference, gpu_as_text

READ_AT_ONCE = 16  # reports fetched at the same time, because each waits for a request to the store
LIKE = 0.5  # least share of the usual number of images for a run to be compared with earlier runs
SAME = 0.05  # relative change of a rate or cost below which it is reported as the same


def overview(output: str) -> dict[str, Any]:
    """Summarize all runs that count, oldest first, with trends of rate and cost, and totals.

    A trend compares a run with the median of the earlier runs: `change` is 0.1 for a tenth more.
    It is None where there is nothing to compare, or where the run is far smaller.
    """
    ids = [run["run_id"] for run in labelling_runs(output)]
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        reports = list(pool.map(lambda run_id: read_report(output, run_id), ids))
    runs: list[dict[str, Any]] = []
    for report in reports:
        row = {
            "run_id": report["run_id"],
            "images": report["images"],
            "failed": report["images"] - report["ok"],
            "detections": report["detections"],
            "wall_seconds": report["wall_seconds"],
            "usd": report["usd"],
            "imported": report.get("imported", False),
        }
        # The rate and cost of a run that is mostly start-up say nothing beside those of large runs.
        usual = median(run["images"] for run in runs) if runs else 0
        like = runs if report["images"] >= LIKE * usual else []
        for name in ("images_per_second", "usd_per_1000_images"):
            row[name] = report[name]
            row[f"{name}_change"] = _change(report[name], [run[name] for run in like])
        runs.append(row)
    labelled = [run for run in runs if not run["imported"]]
    known = [run["usd"] for run in labelled if run["usd"] is not None]
    totals = {
        **{name: sum(run[name] for run in runs) for name in ("images", "failed", "detections")},
        "wall_seconds": sum(run["wall_seconds"] for run in runs),
        "usd": sum(known) if known else None,
        "runs_without_price": len(labelled) - len(known),
    }
    return {"runs": runs, "totals": totals}


def _change(value: float | None, before: list[float | None]) -> float | None:
    """Return the share by which `value` exceeds the median of the known values in `before`."""
    known = [one for one in before if one]
    return value / median(known) - 1 if value and known else None


def as_text(report: dict[str, Any]) -> str:
    """Describe one run for people, one fact a line; fields that older reports lack are left out."""
    if report.get("imported"):
        return _describe_import(report)
    steady = report["images_per_second_steady"]
    before = report["labelled_before"]
    use = report.get("stage_use") or {}
    limits = report.get("limiting_stage")
    cpu_use = report.get("cpu_use")
    stages = [
        f"  {stage:<12} {seconds:.1f} s of workers' time"
        + (f", {use[stage]:.0%} busy" if stage in use else "")
        + (": the limit" if stage == limits else "")
        for stage, seconds in report["seconds_by_stage"].items()
    ]
    lines = [
        f"run            {report['run_id']}",
        f"images         {report['images']} ({report['ok']} labelled)",
        *([f"  before       {before} by a run that was killed or ended"] if before else []),
        *(f"  failed       {count} {reason}" for reason, count in sorted(report["failed"].items())),
        *_describe_rest(report),
        *(f"left out       {reason}: {n}" for reason, n in report.get("left_out", {}).items()),
        f"detections     {report['detections']}",
        *_describe_near_duplicates(report),
        f"wall time      {report['wall_seconds']:.1f} s",
        f"throughput     {report['images_per_second']:.2f} images/s, start-up included",
        "  steady       " + ("one block: no rate" if steady is None else f"{steady:.2f} images/s"),
        *stages,
        f"retries        {counted(report['storage_retries'], 'repeated request')} to stores",
        *_describe_refused_jpegs(report),
        *_describe_canaries(report),
        *(
            f"computed in    {one}: {counted(n, 'image')}"
            for one, n in report.get("computations", {}).items()
        ),
        f"device use     {report['device_use']:.0%} of the wall time",
        *_describe_gpus(report),
        *([] if cpu_use is None else [f"CPU use        {cpu_use:.0%} of {report['cpus']} CPUs"]),
        *_describe_cost(report),
        *(
            []
            if (off := accuracy(report)) is None
            else [f"estimate       {_describe_estimate(report['estimate'])}: {off}"]
        ),
    ]
    return "\n".join(lines)


def _describe_estimate(found: Estimate) -> str:
    return f"{found['seconds']:.0f} s, made before it began from {describe_source(found)}"


def _describe_rest(report: dict[str, Any]) -> list[str]:
    """Describe what a budget left for the next run."""
    if "ended_by" not in report:
        return []
    kept = f", of which {report['kept']} images are labelled already" if report["kept"] else ""
    return [f"ended by       {report['ended_by']}: {report['left']} objects are left{kept}"]


def _describe_import(report: dict[str, Any]) -> str:
    """Describe imported detections, of which neither a rate nor a cost is known."""
    return "\n".join(
        [
            f"run            {report['run_id']}",
            f"images         {report['images']} (imported)",
            f"detections     {report['detections']}",
            *_describe_near_duplicates(report),
            f"wall time      {report['wall_seconds']:.1f} s",
        ]
    )


def _describe_near_duplicates(report: dict[str, Any]) -> list[str]:
    near = report.get("near_duplicates")
    if near is None:  # versions before 0.2 did not count them
        return []
    return [
        f"  near pairs   {near['same_class']} of boxes of one class with an IoU above "
        f"{near['iou']:g}, {near['any_class']} of boxes of any two"
    ]


def _describe_refused_jpegs(report: dict[str, Any]) -> list[str]:
    """Say how many JPEGs CPUs decoded in place of GPUs, if any."""
    refused = report.get("refused_jpegs")
    if not refused:
        return []
    return [f"refused        {counted(refused, 'JPEG')} by the decoder of the GPU"]


def _describe_canaries(report: dict[str, Any]) -> list[str]:
    """Say what proved the run, if it had canaries."""
    proof = report.get("canaries")
    if proof is None:
        return []
    known = ", ".join(proof["reference"])
    text = f"as in {known}" if known else "the first of this model here"
    images, detectors = counted(proof["images"], "image"), counted(proof["detectors"], "detector")
    return [f"canaries       {images} on {detectors}: {text}"]


def _describe_gpus(report: dict[str, Any]) -> list[str]:
    """Describe each GPU and the energy of all, if NVML reported them."""
    lines = [f"GPU            {gpu['name']} {gpu_as_text(gpu)}" for gpu in report.get("gpus", [])]
    if not lines:
        return []
    energy, per_1000 = report["watt_hours"], report["watt_hours_per_1000_images"]
    if energy is None:
        return [*lines, f"energy         {NOT_MEASURED}"]
    each = "" if per_1000 is None else f", {format_figure(per_1000)} Wh per 1,000 images"
    return [*lines, f"energy         {format_figure(energy)} Wh of GPUs{each}"]


def _describe_cost(report: dict[str, Any]) -> list[str]:
    cost = report["usd_per_1000_images"]
    if cost is None:
        return ["cost           not known: give label --instance-type or --usd-per-hour"]
    return [
        f"cost           {cost:.4f} USD per 1,000 images at {report['usd_per_hour']:g} USD an hour "
        f"({report['price_basis']})",
        f"  compared     {compare_with_reference(cost)}",
        *_describe_cost_by_market(report.get("cost")),
    ]


def _describe_cost_by_market(cost: dict[str, Any] | None) -> list[str]:
    """Describe the cost on demand and on spot machines, one line for each kind of node."""
    if cost is None or cost["usd_spot"] is None:
        return []
    lines = [
        f"  {node['kind'].upper() + ' nodes':<12} {node['node_hours']:.3f} h of "
        f"{node['instance_type']}: {node['usd_on_demand']:.4f} USD on demand, "
        f"{node['usd_spot']:.4f} spot"
        for node in cost["nodes"]
    ]
    both = f"{cost['usd_on_demand']:.4f} USD on demand, {cost['usd_spot']:.4f} spot"
    return [*lines, f"  {'all':<12} {both}"]


def overview_as_text(document: dict[str, Any]) -> str:
    """Describe the result of `overview` for people: one line for each run, then the totals."""
    head = ("run", "images", "failed", "wall", "images/s", "", "USD per 1,000", "")
    rows = [
        (
            run["run_id"],
            format_number(run["images"]),
            format_number(run["failed"]),
            format_duration(run["wall_seconds"]),
            "" if (rate := run["images_per_second"]) is None else f"{rate:.2f}",
            _describe_trend(run["images_per_second_change"], "faster", "slower"),
            _describe_price(run),
            _describe_trend(run["usd_per_1000_images_change"], "dearer", "cheaper"),
        )
        for run in document["runs"]
    ]
    totals = document["totals"]
    last = (
        f"{len(rows)} run{'s' if len(rows) > 1 else ''}",
        format_number(totals["images"]),
        format_number(totals["failed"]),
        format_duration(totals["wall_seconds"]),
    )
    table = [head, *rows, (*last, *[""] * (len(head) - len(last)))]
    widths = [max(len(row[k]) for row in table) for k in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if k in (0, 5, 7) else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    if all(run["imported"] for run in document["runs"]):
        return "\n".join(lines)
    missing = totals["runs_without_price"]
    spent = "not known" if totals["usd"] is None else f"{totals['usd']:.4f} USD"
    is_part = 0 < missing < len(rows)
    without = f", of {counted(missing, 'run')} no price is known" if is_part else ""
    cost = f"cost of all: {spent}{without}"
    if len(rows) > 1:
        cost += "; faster, slower, dearer, cheaper: than the median of the earlier runs"
    return "\n".join([*lines, cost])


def _describe_price(run: dict[str, Any]) -> str:
    if run["imported"]:
        return "imported"
    cost = run["usd_per_1000_images"]
    return "not known" if cost is None else f"{cost:.4f}"


def _describe_trend(change: float | None, more: str, less: str) -> str:
    """Describe a change in words, such as `12 % faster`."""
    if change is None:
        return ""
    if abs(change) < SAME:
        return "the same"
    return f"{abs(change):.0%} {more if change > 0 else less}"


def html(output: str, run_id: str | None = None) -> str:
    """Make the page of a finished run again, from its tables and the images in INPUT."""
    from jobs.report.page import gather_contents, render_page
    from jobs.report.pictures import PictureReader, read_plan_of_run

    manifest = with_tables(output, manifest_of(output, run_id)["run_id"])
    report = read_report(output, manifest["run_id"])
    with PictureReader() as reader:
        planned = read_plan_of_run(output, manifest["run_id"])
        return render_page(gather_contents(output, manifest, planned, reader), report)
