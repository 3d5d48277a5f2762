"""Words of charts lie where nothing else is drawn."""

import re

import pytest

from jobs.report.charts import scores
from jobs.report.facts import BINS, SURE


def text_places(svg: str) -> dict[str, float]:
    """The y of each text of a chart, in its pixels from the top."""
    found = re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>([^<]*)</text>', svg)
    return {words: float(y) for y, words in found}


def test_what_is_cut_off_is_said_above_the_bars() -> None:
    cut = round(SURE * BINS)
    places = text_places(scores([129] * cut + [4] * (BINS - cut), 0.02))
    assert places["cut off: up to 129 boxes"] == pytest.approx(places["boxes"], abs=1)


@pytest.mark.parametrize(("threshold", "is_below"), [(0.02, True), (0.29, True), (0.5, False)])
def test_a_threshold_without_room_is_said_below_the_axis(threshold: float, is_below: bool) -> None:
    svg = scores([5] * BINS, threshold)
    assert (f"score, kept from {threshold:g}" in svg) is is_below
    assert f"kept from {threshold:g}" in svg
