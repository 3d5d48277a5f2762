"""Job servers of another Ray, that are gone or silent, or that the user did not name."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from aiohttp import web

from jobs.cli import main
from jobs.submit import job_server
from jobs.submit.shipped_files import ship
from pipeline.storage.files import InputError

LOG = "first\nsecond\nthird\n"


class Server:
    """Answers as Ray's job server does, on loopback; its first log breaks off."""

    def __init__(self, ray: str = "2.60.0") -> None:
        self.ray = ray
        self.log_requests = 0
        self.requested_paths: list[str] = []

    def application(self) -> web.Application:
        found = web.Application()
        found.router.add_get("/api/version", self.version)
        found.router.add_get("/api/jobs/", self.jobs)
        found.router.add_get("/api/jobs/{job}", self.job)
        found.router.add_get("/api/jobs/{job}/logs/tail", self.tail)
        return found

    async def version(self, request: web.Request) -> web.Response:
        self.requested_paths.append(request.path)
        return web.json_response({"version": "4", "ray_version": self.ray, "ray_commit": ""})

    async def jobs(self, request: web.Request) -> web.Response:
        self.requested_paths.append(request.path)
        return web.json_response([])

    async def job(self, request: web.Request) -> web.Response:
        ended = self.log_requests > 1
        return web.json_response(
            {
                "type": "SUBMISSION",
                "entrypoint": "python",
                "submission_id": request.match_info["job"],
                "status": "FAILED" if ended else "RUNNING",
                "driver_exit_code": 3 if ended else None,
            }
        )

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        self.log_requests += 1
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        if self.log_requests == 1:
            await answer.send_str(LOG[:9])
            assert request.transport is not None
            request.transport.abort()
        else:
            await answer.send_str(LOG)
            await answer.close()
        return answer


@contextmanager
def running(server: Server) -> Iterator[str]:
    """Run the server for the `with` block; yield its URL."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(server.application())

    async def begin() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port: int = runner.addresses[0][1]
        return port

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def follow_job(client: job_server.Client) -> int:
    """Follow a job in another thread, because the browser of other tests uses this one's loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(job_server.follow, client, "job-1").result()


def test_cluster_of_another_ray_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with running(Server("2.40.0")) as address:
        assert main(["submit", "s3://b/in", "s3://b/out", "--address", address]) == 2
    assert "runs Ray 2.40.0, and detr-batch needs" in capsys.readouterr().err


def test_the_named_address_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named, other = Server(), Server()
    with running(named) as address, running(other) as elsewhere:
        for name in job_server.OVERRIDES:
            monkeypatch.setenv(name, elsewhere)
        arguments = ["submit", "s3://b/in", "s3://b/out", "--address", address, "--status"]
        assert main(arguments) == 2
    assert "knows no job" in capsys.readouterr().err
    assert named.requested_paths
    assert not other.requested_paths


def test_a_log_goes_on_where_its_connection_broke_off(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()
    with running(server) as address:
        assert follow_job(job_server.connect(address)) == 3
    assert capsys.readouterr().out == LOG


def test_a_reader_that_closes_its_pipe_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_broken_pipe(*_: object, **__: object) -> None:
        raise BrokenPipeError

    with running(Server()) as address:
        client = job_server.connect(address)
        monkeypatch.setattr("builtins.print", raise_broken_pipe)
        with pytest.raises(BrokenPipeError):
            follow_job(client)


def test_a_server_that_is_gone_is_given_up_after_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "PATIENCE", 1.0)
    with running(Server()) as address:
        client = job_server.connect(address)
    with pytest.raises(RuntimeError, match="does not answer any more"):
        follow_job(client)


def test_a_server_that_never_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "ANSWER_SECONDS", 1.0)
    refused = pytest.raises(InputError, match="no job server of Ray answers there")
    with socket.create_server(("127.0.0.1", 0)) as silent, refused:
        job_server.connect(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("address", ["http://user:hunter2@127.0.0.1:1", "https://u:hunter2@[::1]"])
def test_passwords_of_addresses_are_not_shown(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "s3://b/in", "s3://b/out", "--address", address]) == 2
    printed = capsys.readouterr().err
    assert "hunter2" not in printed
    assert "no job server of Ray answers there" in printed


def test_only_code_is_sent(tmp_path: Path) -> None:
    ship(tmp_path)
    sent = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert {f for f in sent if f.startswith("infra/")} == {"infra/__init__.py", "infra/prices.yaml"}
    kinds = {Path(file).suffix for file in sent}
    assert kinds == {
        ".py",
        ".yaml",
        ".json",
        ".css",
        ".html",
        ".j2",
        ".jpg",
        ".js",
        ".safetensors",
        "",
    }
    assert [file for file in sent if not Path(file).suffix] == [
        f"detr_batch-{version('detr-batch')}.dist-info/METADATA"
    ]
