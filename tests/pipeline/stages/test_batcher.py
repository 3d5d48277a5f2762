"""Calls share batches: always one form, filled up, and each call ends with its own images."""

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch

from jobs.bench.gpu.sizes import draw_sizes
from model.detector import Size
from model.resize import ResizeRule, canvas_rule
from pipeline.isolation.journal import CrashJournal
from pipeline.stages.batcher import Batcher, WaitingRoom
from pipeline.stages.detect import GPU_CALLS
from pipeline.stages.recovery import ATTEMPTS, Image, OutOfMemory, RecoveringDetector
from pipeline.storage.errors import CommandFailed
from tests.support.fake_detector import Batch, FakeDetector
from tests.support.parameters import slow_but

NEVER = 1e9  # seconds after which a journal ends the process of an image that is still under way
WIDE, HIGH, SMALL = (800, 1066), (1066, 800), (800, 820)
PUBLISHED = ResizeRule(800, 1333)


def make_images(sizes: Sequence[Size], first: int = 0, name: str = "a") -> list[Image]:
    """Images whose first byte is their number."""
    return [
        Image(
            f"{name}{first + index}",
            torch.full((size[0], size[1], 1), first + index, dtype=torch.uint8).expand(-1, -1, 3),
            (100, 100),
        )
        for index, size in enumerate(sizes)
    ]


def batcher(
    detector: FakeDetector, calls: int = 2, name: str = "batcher", threshold: float = 0.0
) -> Batcher:
    journal = CrashJournal(f"{name}-{time.time_ns()}", 60.0)
    return Batcher(RecoveringDetector(detector, journal, threshold), calls)


def scores(numbers: Sequence[int]) -> list[list[float]]:
    return [[(number + 1) / 512] for number in numbers]


def found(batches: Batcher, images: Sequence[Image]) -> list[list[float]]:
    return [outcome.scores.tolist() for outcome in batches.detect(images)]


def test_a_batch_has_images_of_one_canvas_and_always_the_same_count() -> None:
    detector = FakeDetector(count=4)
    sizes = [WIDE, HIGH, (799, 1050), SMALL, WIDE, WIDE, (790, 1060), HIGH]
    assert found(batcher(detector, calls=1), make_images(sizes)) == scores(range(8))
    forms = {tuple(batch.pixels.shape) for batch in detector.batches}
    assert forms == {(4, 800, 1088, 3), (4, 1088, 800, 3), (4, 800, 832, 3)}
    assert [batch.images for batch in detector.batches] == [[0, 2, 4, 5], [1, 7], [3], [6]]
    for batch in detector.batches:
        assert batch.valid is not None
        blanks = batch.valid[len(batch.images) :]
        assert (blanks == 1).all() and (batch.pixels[len(batch.images) :, 0, 0] == 0).all()


def test_an_image_keeps_its_pixels_and_its_size_at_every_place() -> None:
    detector = FakeDetector(count=3)
    generator = torch.Generator().manual_seed(0)
    sizes = [(790, 1060), (800, 1088), (641, 1025)]
    images = [
        Image(
            str(index),
            torch.randint(0, 256, (*size, 3), generator=generator).byte(),
            (9 + index, 8),
        )
        for index, size in enumerate(sizes)
    ]
    batcher(detector, calls=1).detect(images)
    (batch,) = detector.batches
    assert batch.valid is not None and batch.valid.tolist() == [list(size) for size in sizes]
    assert batch.sizes.tolist() == [[9, 8], [10, 8], [11, 8]]
    for index, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        assert isinstance(image.pixels, torch.Tensor)
        assert torch.equal(batch.pixels[index, :height, :width], image.pixels)


def test_calls_fill_each_others_batches_and_each_ends_with_its_own_images() -> None:
    """The first call waits for the second, which fills its batch; nobody waits for the third."""
    gate = threading.Event()

    def wait(batch: Batch) -> None:
        gate.wait(10)

    detector = FakeDetector(count=4, ahead=0, fails=wait)
    batches = batcher(detector, calls=2)
    with ThreadPoolExecutor(3) as pool:
        blocking = pool.submit(found, batches, make_images([SMALL] * 4, 100))
        while not detector.batches:
            time.sleep(0.001)
        first = pool.submit(found, batches, make_images([WIDE, WIDE], 0))
        second = pool.submit(found, batches, make_images([WIDE, HIGH, WIDE], 10))
        while batches._in_flight < 3:
            time.sleep(0.001)
        gate.set()
        assert blocking.result(10) == scores(range(100, 104))
        assert first.result(10) == scores([0, 1])
        assert second.result(10) == scores([10, 11, 12])
    whole = next(
        batch for batch in detector.batches if len(batch.images) == 4 and 0 in batch.images
    )
    assert sorted(whole.images) == [0, 1, 10, 12]
    assert len(detector.batches) == 3


@pytest.mark.parametrize(("count", "ahead"), slow_but([(2, 1), (1, 0)], product((1, 2, 8), (0, 1))))
def test_every_image_of_many_calls_is_answered_once(count: int, ahead: int) -> None:
    detector = FakeDetector(count=count, ahead=ahead, seconds=0.0005)
    batches = batcher(detector, calls=4)
    rng = random.Random(count)
    numbers = [range(start, start + 12) for start in range(0, 240, 12)]
    sizes = [[rng.choice((WIDE, HIGH, SMALL)) for _ in chunk] for chunk in numbers]
    calls = [make_images(some, chunk[0]) for some, chunk in zip(sizes, numbers, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda images: found(batches, images), calls))
    assert answers == [scores(chunk) for chunk in numbers]
    computed = Counter(image for batch in detector.batches for image in batch.images)
    assert computed == Counter(range(240))


def test_a_failing_image_fails_alone_and_the_form_stays() -> None:
    def fails(batch: Batch) -> Exception | None:
        return RuntimeError("a kernel failed\nmore") if 5 in batch.images else None

    detector = FakeDetector(count=8, fails=fails)
    outcomes = batcher(detector, calls=1).detect(make_images([WIDE] * 8))
    assert [outcome.failure for outcome in outcomes[:5]] == [None] * 5
    assert outcomes[5].failure == ("detector_error", "RuntimeError: a kernel failed")
    assert [outcome.scores.tolist() for outcome in outcomes[6:]] == scores([6, 7])
    assert {tuple(batch.pixels.shape) for batch in detector.batches} == {(8, 800, 1088, 3)}


def test_too_little_memory_ends_all_calls_with_advice() -> None:
    def fails(batch: Batch) -> Exception | None:
        return torch.OutOfMemoryError("CUDA out of memory")

    detector = FakeDetector(count=8, fails=fails)
    batches = batcher(detector)
    with pytest.raises(OutOfMemory, match=r"8 images of 800 x 1088 .* --batch-size 4"):
        batches.detect(make_images([WIDE]))
    assert detector.memory_given_back == 2 and len(detector.batches) == 2
    with pytest.raises(OutOfMemory):
        batches.detect(make_images([WIDE]))


def test_memory_that_is_short_once_costs_one_repetition() -> None:
    """Recorded graphs are given back, and the same batch is computed in the same form."""

    def fails(batch: Batch) -> Exception | None:
        return torch.OutOfMemoryError("CUDA out of memory") if len(detector.batches) == 1 else None

    detector = FakeDetector(count=8, fails=fails)
    assert found(batcher(detector), make_images([WIDE] * 3)) == scores(range(3))
    assert detector.memory_given_back == 1
    assert [batch.images for batch in detector.batches] == [[0, 1, 2], [0, 1, 2]]


def test_a_detector_warms_up_while_there_is_nothing_to_detect() -> None:
    detector = FakeDetector()
    batches = batcher(detector)
    while detector.warmed_up < 3:
        time.sleep(0.001)
    assert found(batches, make_images([WIDE])) == scores([0])
    assert detector.warmed_up == 3 and len(detector.batches) == 1


def test_an_error_of_the_program_reaches_every_call() -> None:
    def fails(batch: Batch) -> Exception | None:
        raise KeyError("a bug")

    batches = batcher(FakeDetector(fails=fails))
    for _ in range(2):
        with pytest.raises(KeyError):
            batches.detect(make_images([WIDE]))
    assert not batches.detector.ended_a_process(make_images([WIDE])[0])


def test_a_detector_that_ends_its_process_politely_ends_the_run() -> None:
    """Ray starts an actor anew, for ever, that raises SystemExit."""

    def fails(batch: Batch) -> Exception | None:
        raise SystemExit(3)

    with pytest.raises(CommandFailed, match="the detector ended: SystemExit: 3"):
        batcher(FakeDetector(fails=fails)).detect(make_images([WIDE]))


def test_an_image_that_ended_a_process_is_computed_alone_and_refused_in_the_end() -> None:
    detector = FakeDetector(count=4, seconds=0.001)
    session = f"suspects-{time.time_ns()}"
    images = make_images([WIDE] * 9)
    dead = CrashJournal(session, NEVER)  # of processes that ended
    for _ in range(ATTEMPTS):
        dead.begin("a3")
    dead.begin("a5")
    batches = Batcher(RecoveringDetector(detector, CrashJournal(session, 60.0), 0.0), 1)
    outcomes = batches.detect(images)
    assert outcomes[3].failure is not None
    status, error = outcomes[3].failure
    assert status == "worker_crash" and f"{ATTEMPTS} times" in error
    rest = [number for number in range(9) if number != 3]
    assert [outcomes[number].scores.tolist() for number in rest] == scores(rest)
    assert [5] in [batch.images for batch in detector.batches]
    assert all(batch.images == [5] for batch in detector.batches if 5 in batch.images)
    assert not dead.unfinished("a5") and not dead.unfinished("a4")


def fill(sizes: Sequence[Size], count: int, calls: int, bytes_per_call: int) -> tuple[float, ...]:
    """Mean fill, pixels of batches per pixel of images, and number of canvases.

    The device is slower than the input: there are always as many calls as there may be.
    """
    rule = canvas_rule(PUBLISHED)
    resized = [PUBLISHED.target_size(*size) for size in sizes]
    blocks: list[list[int]] = [[]]
    held = 0
    for index, (height, width) in enumerate(resized):
        if held + 3 * height * width > bytes_per_call:
            blocks.append([])
            held = 0
        blocks[-1].append(index)
        held += 3 * height * width
    room: WaitingRoom[tuple[int, int]] = WaitingRoom(count)
    left: dict[int, int] = {}
    coming = iter(enumerate(blocks))
    batches, canvas = 0, 0
    canvases: Counter[Size] = Counter()
    while True:
        while len(left) < calls and (block := next(coming, None)):
            left[block[0]] = len(block[1])
            for index in block[1]:
                room.add(rule.canvas(*resized[index]), (block[0], index))
        if not room:
            break
        taken = room.take_full_batch() or room.take_oldest()
        form = rule.canvas(*resized[taken[0][1]])
        batches, canvas = batches + 1, canvas + count * form[0] * form[1]
        canvases[form] += len(taken)
        for call, _ in taken:
            left[call] -= 1
            if not left[call]:
                del left[call]
    pixels = sum(height * width for height, width in resized)
    return len(sizes) / (batches * count), canvas / pixels, len(canvases)


def phone_sizes() -> list[Size]:
    """Camera sizes of phones, their videos' frames and what messengers make of photos."""
    cameras = [(3024, 4032), (4032, 3024), (3000, 4000), (2268, 4032), (2316, 3088), (3088, 2316)]
    others = [(1080, 1920), (1920, 1080), (1536, 2048), (1200, 1600), (960, 1280), (3024, 3024)]
    panoramas = [(3000, 9000), (2800, 7400)]
    return random.Random(0).choices(
        [*cameras, *others, *panoramas], [25, 30, 8, 4, 4, 6, 4, 5, 3, 3, 3, 4, 0.5, 0.5], k=5000
    )


def screenshot_sizes() -> list[Size]:
    """Whole screens of common sizes, and a tenth of windows of any size."""
    rng = random.Random(0)
    screens = [(1080, 1920), (1440, 2560), (2160, 3840), (900, 1440), (1600, 2560), (1964, 3024)]
    screens += [(768, 1366), (1050, 1680), (2532, 1170), (2796, 1290), (2400, 1080)]
    whole = rng.choices(screens, [30, 12, 8, 8, 8, 6, 8, 4, 6, 4, 6], k=4500)
    windows = [(rng.randint(300, 1400), rng.randint(400, 2500)) for _ in range(500)]
    return rng.sample([*whole, *windows], 5000)


@pytest.mark.parametrize(
    "sizes",
    [draw_sizes(5000), phone_sizes(), screenshot_sizes(), [(480, 640)] * 5000],
    ids=["coco", "phone", "screenshots", "one size"],
)
def test_real_mixes_of_sizes_fill_the_batches(sizes: list[Size]) -> None:
    mean_fill, pixels, canvases = fill(sizes, 8, GPU_CALLS, 256 << 20)
    print(f"fill {mean_fill:.3f}, pixels {pixels:.3f}, canvases {canvases:.0f}")
    assert mean_fill >= 0.9 and pixels <= 1.12 and canvases <= 80
