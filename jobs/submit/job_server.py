"""Ray's job server: connect to it, query its jobs, and follow a job to its end."""

import asyncio
import logging
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib.metadata import requires
from typing import Any
from urllib.parse import urlsplit

import requests
from aiohttp import ClientError
from packaging.requirements import Requirement
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.storage.errors import CommandFailed
from pipeline.storage.files import InputError
from pipeline.storage.urls import mask, printable

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0  # to wait for each
QUIET_SECONDS = 60.0  # without log lines, until a new connection is made: the old one may be dead
PATIENCE = 180.0  # seconds without an answer; a head that restarts takes so long
LOOK_SECONDS = 1.0  # between two requests
EXIT_FAILED = 1
# Errors of the network, of Ray's answers, and of a refused token. Errors of requests are OSErrors.
TROUBLES = (OSError, RuntimeError, ClientError, AuthenticationError)
# Variables with which Ray overrides the address that a client is given.
OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
# Loggers of Ray that report uploads and connections.
NEWS = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env")


class Client(JobSubmissionClient):
    """Ray's client with time limits. Ray's own waits for ever for a server that does not answer."""

    def _do_request(self, *arguments: Any, **options: Any) -> requests.Response:
        options.setdefault("timeout", (CONNECT_SECONDS, ANSWER_SECONDS))
        return super()._do_request(*arguments, **options)


def connect(server: str) -> Client:
    """Connect to the job server at a URL. Raises InputError if none answers, or Ray is unfit."""
    url = mask(server)
    for name in NEWS:
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    try:
        parts = urlsplit(server)
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
        socket.create_connection((parts.hostname or "", port), CONNECT_SECONDS).close()
        with _without(OVERRIDES):
            client = Client(server, verify=_authorities() or True)
    except AuthenticationError as error:
        raise InputError(
            f"--address {url} wants a token, or another one: set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error
    except (*TROUBLES, ValueError) as error:
        if isinstance(error.__context__, requests.exceptions.SSLError):
            raise InputError(
                f"--address {url}: its certificate is not trusted here; REQUESTS_CA_BUNDLE names "
                "the file of another certificate authority"
            ) from error
        reason = mask((str(error).splitlines() or [type(error).__name__])[0])
        raise InputError(
            f"--address {url}: no job server of Ray answers there ({reason}); it listens at port "
            "8265 of the head"
        ) from error
    ours = next(one for one in map(Requirement, requires("detr-batch") or []) if one.name == "ray")
    theirs = client._server_ray_version
    if theirs is None or theirs not in ours.specifier:
        raise InputError(
            f"--address {url} runs Ray {theirs}, and detr-batch needs {ours.specifier}: use the "
            "image of infra/Dockerfile"
        )
    return client


def _authorities() -> str | None:
    """The file or folder of certificate authorities to trust. None means those of the system.

    Ray's client sends requests and follows logs with two libraries, which read one variable each.
    """
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Remove variables from the environment while the block runs."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def jobs_named(client: Client, name: str) -> list[JobDetails]:
    """Jobs with the id `<name>-<number>`, oldest first."""
    pattern = re.compile(rf"{re.escape(name)}-\d+")
    found = [job for job in client.list_jobs() if pattern.fullmatch(job.submission_id or "")]
    return sorted(found, key=number)


def number(job: JobDetails) -> int:
    """The number at the end of a job id."""
    return int(str(job.submission_id).rsplit("-", 1)[1])


def follow(client: Client, job_id: str) -> int:
    """Print the log of a job as it grows. Returns its exit code. CommandFailed if Ray is gone."""
    asyncio.run(_log(client, job_id))
    job = client.get_job_info(job_id)
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.driver_exit_code is None or job.status == JobStatus.STOPPED:
        message = printable(mask(job.message or "")).strip()
        print(f"detr-batch: job {job_id} {job.status.lower()}: {message}", file=sys.stderr)
        return EXIT_FAILED
    return int(job.driver_exit_code)


async def _log(client: Client, job_id: str) -> None:
    """Print the log of a job to its end, even if the connection is lost in between."""
    shown = 0
    lost_since: float | None = None  # time of the first failed request
    while True:
        try:
            position = 0
            async for text in _while_it_speaks(client.tail_job_logs(job_id)):
                lost_since = None
                # A new connection sends the whole log again.
                new_text = text[max(0, shown - position) :]
                position += len(text)
                shown = max(shown, position)
                print(printable(new_text.expandtabs().replace("\r", "")), end="", flush=True)
            if client.get_job_info(job_id).status.is_terminal():
                return
            lost_since = None
        except BrokenPipeError:
            raise  # the reader of our stdout is gone
        except TROUBLES as error:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > PATIENCE:
                raise CommandFailed(
                    f"the job server does not answer any more ({mask(str(error))}): the job may go "
                    "on, and `detr-batch submit --follow` follows it when the server is back"
                ) from error
        await asyncio.sleep(LOOK_SECONDS)


async def _while_it_speaks(texts: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield `texts` until they end, or until none comes for QUIET_SECONDS."""
    while True:
        try:
            yield await asyncio.wait_for(anext(texts), QUIET_SECONDS)
        except (StopAsyncIteration, TimeoutError):
            return


def stop(client: Client, job: JobDetails, seconds: float) -> JobDetails:
    """Stop a job, and wait for its end. Raises CommandFailed if it has not ended in `seconds`."""
    client.stop_job(job.submission_id)
    until = time.monotonic() + seconds
    while not job.status.is_terminal():
        if time.monotonic() > until:
            raise CommandFailed(f"job {job.submission_id} has not ended in {seconds:.0f} s")
        time.sleep(LOOK_SECONDS)
        job = client.get_job_info(job.submission_id)
    return job
