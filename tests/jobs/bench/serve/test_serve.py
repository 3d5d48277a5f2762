"""`bench serve` counts what an endpoint answers, and measures a real one."""

import asyncio
import base64
import csv
import json
from pathlib import Path

import pytest
from aiohttp import web

from jobs.bench.serve.clients import bodies_of, run_clients
from jobs.cli import main
from tests.support.coroutines import run_coroutine

IMAGES = [b"one", b"two", b"three"]


def test_each_body_has_other_images_of_all() -> None:
    bodies = [json.loads(body) for body in bodies_of("shapes-tiny", IMAGES, 5)]
    found = [[base64.b64decode(uri.partition(",")[2]) for uri in body["images"]] for body in bodies]
    assert found[1] == [b"two", b"three", b"one", b"two", b"three"]
    assert [one[0] for one in found] == IMAGES
    assert {body["model"] for body in bodies} == {"shapes-tiny"}


def test_clients_count_answers_and_refusals() -> None:
    """A server that has two places, and refuses the third client for as long as it says."""
    busy = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal busy
        if busy == 2:
            return web.json_response({}, status=503, headers={"retry-after": "0.05"})
        busy += 1
        await asyncio.sleep(0.02)
        busy -= 1
        assert (await request.json())["images"]
        return web.json_response({})

    async def measure() -> None:
        app = web.Application()
        app.router.add_post("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        load = await run_clients(f"http://{host}:{port}/", bodies_of("m", IMAGES, 2), 2, 3, 0.5)
        await runner.cleanup()
        assert load.statuses[200] * 2 == load.images == 2 * len(load.took)
        assert load.statuses[503] == len(load.refused) > 0
        assert 0.4 <= load.seconds < 0.6 + max(load.took), "up to the last answer"
        assert 0 < load.cpu_seconds < load.seconds + 0.2
        assert min(load.took) >= 0.02
        assert load.images_per_second < 2 * 2 / 0.02

    run_coroutine(measure())


@pytest.mark.parametrize(
    "words, told",
    [
        (["--clients", "0"], "--clients"),
        (["--clients", "1,x"], "--clients"),
        (["--device-seconds", "0"], "--device-seconds"),
        (["--images", "0"], "--images"),
        (["--seconds", "-1"], "--seconds"),
        (["--model", "shapes-tinny"], "shapes-tiny"),
    ],
)
def test_wrong_numbers_are_refused(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.slow
def test_endpoint_is_measured_beside_its_detectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.csv"
    words = ["--device-seconds", "0.1", "--clients", "1,16", "--queue", "8", "--seconds", "2"]
    assert main(["bench", "serve", *words, "--results", str(results), "--json"]) == 0
    one, many = json.loads(capsys.readouterr().out)
    with results.open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert one["details"]["refused"] == 0 < many["details"]["refused"]
    assert one["images_per_second"] < many["images_per_second"] <= 21
    assert 100 <= one["p20_ms"] <= one["p50_ms"] <= one["details"]["p99_ms"]
    assert 0.5 < many["details"]["of_alone"] < 1.2
    assert 0 < many["details"]["client_cores"] < 1


@pytest.mark.slow
def test_real_detectors_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--clients", "2", "--seconds", "1", "--results", str(tmp_path / "results.csv")]
    assert main(["bench", "serve", *words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["case"] == "2 clients, shapes-tiny" and row["precision"] != "simulated"
    assert row["images_per_second"] > 0 and row["details"]["refused"] == 0
