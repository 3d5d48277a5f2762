"""The estimate of a run from the receipts of a probe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.accounting.estimate import Estimate, usd_of
from jobs.accounting.node_hours import Rates
from pipeline.plan.sample import PROBE, Sample
from pipeline.schema import Receipt

BATCHES = 10  # at most, into which the receipts are cut for the interval
# 97.5 % points of Student's t distribution with 1, 2, ... degrees of freedom.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Rate:
    """Seconds for each image, behind the first block."""

    seconds: float
    half_width: float | None  # of the 95 % interval; None if there are too few blocks for one


def rate_of(receipts: Sequence[Receipt]) -> Rate | None:
    """The rate at which receipts arrived, in the order of their time. None of fewer than two.

    The receipts behind the first are cut into batches that follow one another. The rate is the time
    of all batches by their images, and the interval is that of a ratio estimator: Student's t, with
    the batches as independent observations (method of batch means).
    """
    ordered = sorted(receipts, key=lambda receipt: receipt.finished_at)
    times = np.array([receipt.finished_at for receipt in ordered])
    images = np.cumsum([receipt.images for receipt in ordered]).astype(float)
    if len(ordered) < 2 or times[-1] <= times[0]:
        return None
    edges = _batch_edges(images)
    seconds, counts = np.diff(times[edges]), np.diff(images[edges])
    rate = float(seconds.sum() / counts.sum())
    batches = len(counts)
    if batches < 3:
        return Rate(rate, None)
    spread = float(((seconds - rate * counts) ** 2).sum()) / (batches - 1)
    return Rate(rate, T[batches - 2] * math.sqrt(batches * spread) / float(counts.sum()))


def _batch_edges(images: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> list[int]:
    """The last receipts of up to BATCHES batches of about as many images, from the first one on.

    `images` counts the images up to each receipt.
    """
    marks = np.linspace(images[0], images[-1], min(BATCHES, len(images) - 1) + 1)
    return sorted({0, *np.searchsorted(images, marks).tolist(), len(images) - 1})


def estimate_by_probe(
    receipts: Sequence[Receipt],
    sample: Sample,
    startup: float,
    nodes: Mapping[str, float],
    rates: Rates,
) -> Estimate | None:
    """Estimate a run from a probe of its plan. None if the probe has fewer than two blocks.

    None, too, if the plan has archives and the probe does not say how many images they hold.
    `startup` is the time in seconds until the first block, and `nodes` the number of nodes by kind.
    """
    rate, plan = rate_of(receipts), _images_of_plan(receipts, sample)
    if rate is None or plan is None:
        return None
    images, share = plan
    labelling = images * rate.seconds
    seconds = startup + labelling
    probed = sum(receipt.images for receipt in receipts)
    usd = usd_of(seconds, nodes, rates)
    found = Estimate(images=images, seconds=seconds, usd=usd, runs=0, probed=probed)
    if rate.half_width is not None:
        # Errors of the rate and of the number of images are independent of each other.
        half = labelling * math.hypot(rate.half_width / rate.seconds, share)
        found["least_seconds"] = max(startup, seconds - half)
        found["most_seconds"] = seconds + half
    return found


def _images_of_plan(receipts: Sequence[Receipt], sample: Sample) -> tuple[int, float] | None:
    """The number of images of the plan, and the half width of its 95 % interval as a share of it.

    The images of archives are their bytes by the mean size of those that the probe read of them.
    None if these bytes are not known, or if it read nothing of archives.
    """
    if sample.archive_bytes == 0:
        return sample.loose, 0.0
    read = [one for one in receipts if not one.shards[0].startswith(PROBE)]
    size = sum(one.encoded_bytes for one in read)
    if sample.archive_bytes is None or not size:
        return None
    counts = np.array([one.images for one in read], float)
    sizes = np.array([one.encoded_bytes for one in read], float)
    in_archives = sample.archive_bytes * counts.sum() / size
    images = sample.loose + max(1, round(in_archives))
    if len(read) < 3:
        return images, 0.0
    mean = size / counts.sum()
    spread = float(((sizes - mean * counts) ** 2).sum()) / (len(read) - 1)
    half = T[min(len(read) - 2, len(T) - 1)] * math.sqrt(len(read) * spread) / size
    return images, half * in_archives / images
