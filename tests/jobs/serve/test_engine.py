"""The engine in one process: its boxes, its failures, and what it refuses."""

import asyncio
import io
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from jobs.demo.scenes import render_scene
from jobs.serve.engine.engine import Engine, Labelled, Overloaded
from jobs.serve.engine.in_process_engine import InProcessEngine
from jobs.serve.engine.joining import MOST_IMAGES, Joiner
from jobs.serve.engine.spec import local_engine_spec
from jobs.serve.settings.options import ServeOptions
from pipeline import load
from pipeline.schema import EMPTY_FILE, TOO_MANY_PIXELS, UNDECODABLE
from tests.support.coroutines import run_coroutine

OPTIONS = ServeOptions(
    model="shapes-tiny",
    device="cpu",
    precision="fp32",
    max_pixels=400 * 300,
    max_queue=8,
    max_images=8,
)


def scene(seed: int, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    pixels = render_scene(np.random.default_rng(seed), 320, 256).pixels
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


@pytest.fixture(scope="module")
def engine() -> InProcessEngine:
    return InProcessEngine(local_engine_spec(OPTIONS))


def test_boxes_are_those_of_the_detector(engine: Engine) -> None:
    images = [scene(seed) for seed in range(3)]
    found = run_coroutine(engine.detect_all(images))
    detector = load("shapes-tiny", device="cpu", precision="fp32", threshold=0.0)
    expected = detector([Image.open(io.BytesIO(image)) for image in images])
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.labels, ours.scores) == (theirs.labels, theirs.scores)
        assert [list(box) for box in ours.boxes] == theirs.boxes
        assert (ours.width, ours.height) == (320, 256)
        assert all(more >= less for more, less in pairwise(ours.scores))
        assert set(ours.labels) <= set(engine.labels)


def test_bad_images_cost_no_others(engine: Engine) -> None:
    large = io.BytesIO()
    Image.new("RGB", (500, 400)).save(large, "PNG")
    images = [b"no image", scene(1), b"", large.getvalue()]
    found = run_coroutine(engine.detect_all(images))
    statuses = [one.status for one in found]
    assert statuses == [UNDECODABLE, "ok", EMPTY_FILE, TOO_MANY_PIXELS]
    assert all(one.error for one in found if not one.is_ok)
    assert found[1].scores and not found[0].boxes


def test_too_many_images_are_refused_at_once(engine: Engine) -> None:
    async def ask() -> list[list[Labelled] | BaseException]:
        return await asyncio.gather(
            *(engine.detect_all([scene(seed)]) for seed in range(12)), return_exceptions=True
        )

    found = run_coroutine(ask())
    assert [isinstance(one, Overloaded) for one in found] == [False] * 8 + [True] * 4
    with pytest.raises(Overloaded):
        run_coroutine(engine.detect_all([b""] * 9))
    (again,) = run_coroutine(engine.detect_all([scene(1)]))
    assert again.is_ok, "what was refused holds no place"


def small(images: Sequence[bytes]) -> list[tuple[bytes, int]]:
    return [(image, 1) for image in images]


class Calls:
    """Answers by the first byte of an image. A call waits until it is let go."""

    def __init__(self, seconds: float = 0.01):
        self.seconds = seconds
        self.sizes: list[int] = []
        self.most = self.now = 0

    async def __call__(self, images: Sequence[bytes]) -> tuple[list[Labelled], float]:
        self.sizes.append(len(images))
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1
        if b"end" in images:
            raise RuntimeError("ended")
        return [Labelled("ok", image.decode()) for image in images], self.seconds


def test_images_go_alone_while_calls_are_free_and_together_afterwards() -> None:
    calls = Calls()

    async def ask() -> None:
        joiner = Joiner(calls, 4)
        await joiner.detect(small([b"first"]))
        texts = [str(number) for number in range(100)]
        found = await asyncio.gather(*(joiner.detect(small([text.encode()])) for text in texts))
        assert [one.error for (one,) in found] == texts

    run_coroutine(ask())
    assert calls.sizes[:5] == [1] * 5
    assert max(calls.sizes) == MOST_IMAGES
    assert sum(calls.sizes) == 101
    assert calls.most == 4


def test_images_of_one_request_are_shared_among_calls() -> None:
    calls = Calls()

    async def ask() -> None:
        joiner = Joiner(calls, 8)
        await joiner.detect(small([b"first"]))
        await joiner.detect(small([b"one"] * 8))

    run_coroutine(ask())
    assert calls.sizes == [1, 2, 2, 1, 1, 1, 1]


def test_slow_images_do_not_wait_for_one_another() -> None:
    calls = Calls(seconds=1.0)

    async def ask() -> None:
        joiner = Joiner(calls, 2)
        await asyncio.gather(*(joiner.detect(small([b"one"])) for _ in range(20)))

    run_coroutine(ask())
    assert set(calls.sizes) == {1}


def test_slow_images_that_have_waited_long_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.serve.engine.joining.WAITED_SHARE", 500.0)  # of some hundredths
    calls = Calls(seconds=1.0)

    async def ask() -> None:
        joiner = Joiner(calls, 2)
        await asyncio.gather(*(joiner.detect(small([b"one"])) for _ in range(30)))

    run_coroutine(ask())
    assert calls.sizes[:2] == [1, 1] and max(calls.sizes) > 2
    assert sum(calls.sizes) == 30


def test_error_of_a_call_reaches_its_images_alone() -> None:
    async def ask() -> list[list[Labelled] | BaseException]:
        joiner = Joiner(Calls(), 2)
        asked = [joiner.detect(small([text])) for text in (b"good", b"end", b"fine")]
        return await asyncio.gather(*asked, return_exceptions=True)

    good, ended, fine = run_coroutine(ask())
    assert isinstance(ended, RuntimeError)
    assert isinstance(good, list) and isinstance(fine, list)


def test_images_of_a_client_that_is_gone_are_not_computed() -> None:
    calls = Calls()

    async def ask() -> None:
        joiner = Joiner(calls, 1)
        first = asyncio.create_task(joiner.detect(small([b"first"])))
        gone = asyncio.create_task(joiner.detect(small([b"gone"] * 5)))
        await asyncio.sleep(0)
        gone.cancel()
        await first
        await joiner.detect(small([b"last"]))

    run_coroutine(ask())
    assert sum(calls.sizes) == 2
