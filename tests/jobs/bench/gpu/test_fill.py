"""How full batches are: counted from the batches that a detector submits."""

from pathlib import Path

import pytest
import torch

from jobs.bench.gpu.fill import BatchLog, Fill, fill_as_text, read_fill, watch_batches
from jobs.bench.gpu.mix import Mix
from jobs.bench.gpu.sizes import draw_sizes
from model.named import RANDOM, named_model
from pipeline.isolation.journal import CrashJournal
from pipeline.stages.batcher import Batcher
from pipeline.stages.recovery import Image, RecoveringDetector
from tests.support.fake_detector import FakeDetector


def test_blanks_and_padding_are_counted(tmp_path: Path) -> None:
    """Five images of one canvas and one of another go in three batches of four places."""
    detector, fill, log = FakeDetector(count=4), Fill(), BatchLog(str(tmp_path))
    watch_batches(detector, fill.add)
    watch_batches(detector, log.add)
    recovering = RecoveringDetector(detector, CrashJournal("fill", 60.0), 0.0)
    batcher = Batcher(recovering, calls=1)
    sizes = [(800, 1066)] * 5 + [(1066, 800)]
    images = [
        Image(str(index), torch.zeros(*size, 3, dtype=torch.uint8), size)
        for index, size in enumerate(sizes)
    ]
    batcher.detect(images)
    batcher.close()
    assert fill.forms == {(4, 800, 1088): 2, (4, 1088, 800): 1}
    assert (fill.images, fill.places, fill.batches) == (6, 12, 3)
    assert fill.pixels == 6 * 800 * 1066 and fill.canvas == 12 * 800 * 1088
    details = fill.describe()
    assert (details["mean_fill"], details["mean_batch"], details["forms"]) == (0.5, 2.0, 2)
    assert fill_as_text(details).startswith("fill 50%, 2.041 of the images' pixels, 3 batches")
    assert read_fill(tmp_path) == fill


@pytest.mark.slow
def test_on_a_cpu_each_image_of_a_mix_is_a_batch_of_its_own_size() -> None:
    mix = Mix("shapes-tiny", RANDOM, "fp32", "cpu", images=5)
    rule = named_model("shapes-tiny").config().resize
    for _ in range(2):
        assert mix.label() > 0
        assert (mix.fill.images, mix.fill.places, mix.fill.batches) == (5, 5, 5)
        assert mix.fill.canvas == mix.fill.pixels
        assert set(mix.fill.forms) == {(1, *rule.target_size(*size)) for size in draw_sizes(5)}
    assert mix.passes() == {}
