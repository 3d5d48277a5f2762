"""Charts as SVG for a page, drawn by matplotlib.

Their fonts and colours are those of the page, light or dark.
"""

import io
import re
from itertools import count
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jobs.accounting.timeline import Point, rates
from jobs.report.facts import BINS, SURE

# Each of these placeholder colours becomes a CSS variable of the page.
INK, QUIET, LINE, ACCENT, SOFT = "#010101", "#010102", "#010103", "#010104", "#010105"
_VARIABLES = {INK: "ink", QUIET: "quiet", LINE: "line", ACCENT: "accent", SOFT: "soft"}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 12,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 1,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "ytick.major.size": 0,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
WIDE, NARROW = (1040, 250), (352, 250)  # width and height in CSS pixels
_numbers = count()
_TO_THE_LEFT: Any = {"textcoords": "offset points", "ha": "right", "va": "top"}
ROOM = 0.3  # least score with room for the words about a threshold between it and the axis


def over_time(
    points: list[Point], steady: float | None, cpus: int | None, size: tuple[int, int]
) -> str:
    """Draw images/s over time, and below it the share of busy CPUs where that was measured."""
    wide = size == WIDE
    parts = rates(points, 60 if wide else 30, steady)
    unit, seconds = _choose_unit(points[-1]["seconds"])
    width = (parts[1][0] - parts[0][0]) / seconds
    places = [at / seconds for at, _, _ in parts]
    measured = bool(cpus) and parts[0][2] is not None
    with matplotlib.rc_context(_STYLE):
        figure = _make_figure(size[0], size[1] + (70 if measured else 0))
        rows = figure.subplots(
            2 if measured else 1,
            1,
            sharex=True,
            squeeze=False,
            height_ratios=[3, 1][: 1 + measured],
        )[:, 0]
        top = rows[0]
        _draw_steps(top, places, [rate for _, rate, _ in parts], width)
        top.set_title("images per second", loc="left", fontsize=12, color=QUIET)
        if steady:
            top.axhline(steady, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            top.annotate(
                f"steady: {steady:,.2f}", (0, steady), (4, 4), textcoords="offset points", color=INK
            )
        top.yaxis.set_major_locator(MaxNLocator(4))
        top.set_ylim(0, 1.15 * max([*(rate for _, rate, _ in parts), steady or 0]) or 1)
        if measured and cpus:
            _draw_steps(rows[1], places, [100 * (busy or 0) / cpus for _, _, busy in parts], width)
            rows[1].set_title(f"per cent of {cpus} CPUs", loc="left", fontsize=12, color=QUIET)
            rows[1].set_ylim(0, 105)
            rows[1].set_yticks([0, 50, 100])
        rows[-1].set_xlim(0, points[-1]["seconds"] / seconds)
        rows[-1].xaxis.set_major_locator(MaxNLocator(10 if wide else 5))
        rows[-1].set_xlabel(f"{unit} since the start")
        return _export_svg(figure, "Images per second over the run's time")


def _draw_steps(axes: Axes, places: list[float], values: list[float], width: float) -> None:
    edges = [*(place - width / 2 for place in places), places[-1] + width / 2]
    axes.stairs(values, edges, fill=True, color=SOFT)
    axes.stairs(values, edges, color=ACCENT, linewidth=1.5, baseline=None)


def _choose_unit(seconds: float) -> tuple[str, int]:
    """Choose a time unit for a run of this length, and return it with its seconds."""
    if seconds < 180:
        return "seconds", 1
    return ("minutes", 60) if seconds < 3 * 3600 else ("hours", 3600)


def scores(counts: list[int], threshold: float | None) -> str:
    """Draw the distribution of box scores from 0 to 1, in BINS parts.

    A low threshold leaves many boxes below SURE. Such high bars are cut off, and a note above them
    says so.
    """
    edges = [part / BINS for part in range(BINS + 1)]
    cut = round(SURE * BINS)
    most = max(counts[cut:], default=0) or max(counts) or 1
    top = 1.3 * most
    with matplotlib.rc_context(_STYLE):
        figure = _make_figure(440, 260)
        axes = figure.subplots()
        shown = [min(count, top) for count in counts]
        axes.bar(edges[:cut], shown[:cut], 0.92 / BINS, align="edge", color=SOFT)
        axes.bar(edges[cut:-1], shown[cut:], 0.92 / BINS, align="edge", color=ACCENT)
        axes.set_ylim(0, min(top, 1.12 * (max(counts) or 1)))
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("score")
        axes.set_title("boxes", loc="left", fontsize=12, color=QUIET)
        if any(count > top for count in counts[:cut]):
            text = f"cut off: up to {max(counts):,} boxes"
            axes.set_title(text, loc="right", fontsize=12, color=INK)  # above all bars
        if threshold:
            axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            text = f"kept from {threshold:g}"
            if threshold < ROOM:
                axes.set_xlabel(f"score, {text}")
            else:
                place = (threshold, axes.get_ylim()[1])
                axes.annotate(text, place, (-5, -4), **_TO_THE_LEFT)
        return _export_svg(figure, "Boxes by score")


def _make_figure(width: int, height: int) -> Figure:
    """Make a figure of this many CSS pixels; one point of the figure is one CSS pixel."""
    return Figure((width / 72, height / 72), layout="constrained")


def _export_svg(figure: Figure, says: str) -> str:
    """Export the figure as SVG for a page, with no ids that another chart may have, and no size."""
    number = next(_numbers)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"chart {number}"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' id="[a-z0-9]*_[a-z0-9_.]*"', "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg", f'<svg role="img" aria-label="{says}"', 1)
