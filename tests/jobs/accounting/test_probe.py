"""The estimate of a probe, and whether its interval holds what it says."""

import numpy as np
import pytest

from jobs.accounting.estimate import as_text
from jobs.accounting.node_hours import Rates
from jobs.accounting.probe import estimate_by_probe, rate_of
from pipeline.plan.sample import Sample
from pipeline.schema import Receipt

TRUE = 0.25  # seconds for an image
SAMPLE = Sample([], 10_000, 0)


def receipts(seconds: list[float], images: int = 10, name: str = "probe-0") -> list[Receipt]:
    """Receipts of blocks that follow one another, each with its seconds behind the one before."""
    times = 1000.0 + np.cumsum(seconds)
    size = 100 * images
    return [
        Receipt(str(k), (name,), images, 0, encoded_bytes=size, finished_at=float(time))
        for k, time in enumerate(times)
    ]


def test_the_rate_is_the_time_behind_the_first_block_by_its_images() -> None:
    found = rate_of(receipts([60.0, *[10 * TRUE] * 19]))
    assert found is not None and found.seconds == pytest.approx(TRUE)
    assert found.half_width == pytest.approx(0.0, abs=1e-9)
    assert rate_of(receipts([60.0])) is None
    few = rate_of(receipts([60.0, 2.0, 3.0]))
    assert few is not None and few.half_width is None


def test_the_interval_holds_the_true_rate_95_times_of_100() -> None:
    random = np.random.default_rng(1)
    inside, runs = 0, 400
    for _ in range(runs):
        seconds = random.gamma(4.0, 10 * TRUE / 4.0, 21).tolist()
        found = rate_of(receipts(seconds))
        assert found is not None and found.half_width is not None
        inside += abs(found.seconds - TRUE) <= found.half_width
    assert 0.90 <= inside / runs <= 0.98


def test_an_estimate_has_start_up_nodes_prices_and_its_interval() -> None:
    blocks = receipts([60.0, *[2.0, 2.0, 3.0, 3.0] * 5])
    rates = Rates(usd_per_hour=3.6)
    found = estimate_by_probe(blocks, SAMPLE, 60.0, {"cpu": 1.0}, rates)
    assert found is not None and found["images"] == 10_000 and found["probed"] == 210
    assert found["seconds"] == pytest.approx(60 + 10_000 * TRUE)
    assert found["usd"] == pytest.approx(found["seconds"] * 3.6 / 3600)
    assert found["least_seconds"] < found["seconds"] < found["most_seconds"]
    text = as_text(found)
    assert text.startswith("about 10000 images, 42 min 40 s, 2.56 USD (by a probe of 210 images)")
    assert text.endswith("USD (95 %)")


def test_images_of_archives_are_counted_by_their_bytes() -> None:
    blocks = receipts([5.0] * 12, name="s3://b/a.tar")
    found = estimate_by_probe(blocks, Sample([], 50, 100_000), 5.0, {"cpu": 1.0}, Rates())
    assert found is not None and found["images"] == 50 + 1000 and found["usd"] is None


@pytest.mark.parametrize("archive_bytes", [None, 100_000])
def test_without_the_size_of_archives_or_of_their_images_there_is_no_estimate(
    archive_bytes: int | None,
) -> None:
    """Blocks are no images: a probe of 12 blocks of 10 images said that there are 62."""
    name = "s3://b/a.tar" if archive_bytes is None else "probe-0"
    blocks, sample = receipts([5.0] * 12, name=name), Sample([], 50, archive_bytes)
    assert estimate_by_probe(blocks, sample, 5.0, {"cpu": 1.0}, Rates()) is None
