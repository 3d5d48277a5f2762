"""`detr-batch bench plot`: the newest measurements of each case as bars."""

import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.storage.errors import InputError

# our subjects; all others are peers
OURS = ("detr-batch", "detr-batch label", "fused_cpu", "triton")
OUR_COLOUR, PEER_COLOUR = "#0072b2", "#999999"  # colour-blind people can tell them apart too

Row = dict[str, str]
Case = tuple[str, ...]  # (device, benchmark, case, batch)


def newest(results: Path) -> dict[Case, list[Row]]:
    """Read the last row of each subject and precision, by case, fastest first.

    Rows of `bench gpu` are used only if they stand beside peers. InputError if there are no rows.
    """
    if not results.exists():
        raise InputError(f"{results} does not exist: run another `detr-batch bench` first")
    last: dict[Case, dict[tuple[str, str], Row]] = {}
    with results.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["benchmark"].startswith("gpu ") and row["benchmark"] != "gpu peers":
                continue
            case = tuple(row[name] for name in ("device", "benchmark", "case", "batch"))
            last.setdefault(case, {})[row["subject"], row["precision"]] = row
    if not last:
        raise InputError(f"{results} holds no measurements")
    return {
        case: sorted(rows.values(), key=lambda row: float(row["p50_ms"]))
        for case, rows in last.items()
    }


def plot(results: Path, picture: Path) -> None:
    """Draw `newest` into a file of the format that its suffix names (.svg, .png, .pdf).

    InputError for results without rows, or for a format that cannot be drawn.
    """
    cases = newest(results)
    heights = [len(rows) + 2.5 for rows in cases.values()]
    figure = Figure(figsize=(9, 0.32 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(cases), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (case, rows) in zip(panels, cases.items(), strict=True):
        _draw(axes, case, rows)
    try:
        figure.savefig(picture, dpi=120)
    except ValueError as error:  # for a format that matplotlib does not know
        raise InputError(f"{picture}: {error}") from error


def _draw(axes: Axes, case: Case, rows: list[Row]) -> None:
    device, _, name, batch = case
    p20, p50, p80 = ([float(row[f"{p}_ms"]) for row in rows] for p in ("p20", "p50", "p80"))
    spread = [
        [middle - low for low, middle in zip(p20, p50, strict=True)],
        [high - middle for high, middle in zip(p80, p50, strict=True)],
    ]
    colours = [OUR_COLOUR if row["subject"] in OURS else PEER_COLOUR for row in rows]
    names = [_name(row) for row in rows]
    bars = axes.barh(names, p50, xerr=spread, color=colours, ecolor="#333333")
    axes.bar_label(bars, [f"{v:,.0f} ms" if v >= 100 else f"{v:.3g} ms" for v in p50], padding=6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * max(p80))
    axes.set_title(f"{name}, batch {batch}\n{device}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _name(row: Row) -> str:
    wrong = ", answers NaN" if row["error"] == "nan" else ""
    return f"{row['subject']} ({row['precision']}{wrong})"
