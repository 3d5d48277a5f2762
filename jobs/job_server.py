"""Ray's job server: found, asked, and followed to a job's end."""

import asyncio
import logging
import re
import sys
import time
from importlib.metadata import requires

import requests
from aiohttp import ClientError
from packaging.requirements import Requirement
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.label_options import check_reachable
from model.urls import mask, printable
from pipeline.storage import InputError

PATIENCE = 180.0  # seconds without an answer: a head that starts anew takes so long
LOOK_SECONDS = 1.0
EXIT_FAILED = 1
TROUBLES = (ConnectionError, RuntimeError, requests.RequestException, ClientError, OSError)


def connect(server: str) -> JobSubmissionClient:
    """A client of the job server at a URL. InputError where none answers, or its Ray is no use."""
    place = mask(server)
    host = server.split("://", 1)[1].split("/", 1)[0]
    if ":" in host:
        check_reachable(host)  # Ray would try for minutes
    for module in (
        "dashboard.modules.dashboard_sdk",
        "dashboard.modules.job.sdk",
        "_private.runtime_env.packaging",
    ):  # their news of uploads and connections
        logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(server)
    except AuthenticationError as error:
        raise InputError(
            f"--address {place} wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    except (*TROUBLES, ValueError) as error:
        reason = mask(str(error).splitlines()[0])
        raise InputError(
            f"--address {place}: no job server of Ray answers there ({reason}); it listens at port "
            "8265 of the head"
        ) from error
    ours = next(one for one in map(Requirement, requires("detr-batch") or []) if one.name == "ray")
    theirs = client._server_ray_version
    if theirs is None or theirs not in ours.specifier:
        raise InputError(
            f"--address {place} runs Ray {theirs}, and detr-batch needs {ours.specifier}: use the "
            "image of infra/Dockerfile"
        )
    return client


def jobs_named(client: JobSubmissionClient, name: str) -> list[JobDetails]:
    """Jobs called `<name>-<number>`, oldest first."""
    pattern = re.compile(rf"{re.escape(name)}-\d+")
    found = [job for job in client.list_jobs() if pattern.fullmatch(job.submission_id or "")]
    return sorted(found, key=number)


def number(job: JobDetails) -> int:
    """With which the name of a job ends."""
    return int(str(job.submission_id).rsplit("-", 1)[1])


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Show a job's log as it grows; the job's own exit code. RuntimeError where Ray is gone."""
    asyncio.run(_log(client, job_id))
    job = client.get_job_info(job_id)
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.driver_exit_code is None or job.status == JobStatus.STOPPED:
        said = printable(mask(job.message or "")).strip()
        print(f"detr-batch: job {job_id} {job.status.lower()}: {said}", file=sys.stderr)
        return EXIT_FAILED
    return int(job.driver_exit_code)


async def _log(client: JobSubmissionClient, job_id: str) -> None:
    """Print a job's log to its end, also where the connection is lost in between."""
    shown = 0
    heard = time.monotonic()
    while True:
        try:
            at = 0
            async for text in client.tail_job_logs(job_id):
                heard = time.monotonic()
                # A new connection tells all from the beginning.
                fresh = text[max(0, shown - at) :]
                at += len(text)
                shown = max(shown, at)
                print(printable(fresh.expandtabs().replace("\r", "")), end="", flush=True)
            if client.get_job_info(job_id).status.is_terminal():
                return
        except TROUBLES as error:
            if time.monotonic() - heard > PATIENCE:
                raise RuntimeError(
                    f"the job server does not answer any more ({mask(str(error))}): whether the "
                    f"job goes on, `detr-batch submit --status` tells when it does"
                ) from error
        await asyncio.sleep(LOOK_SECONDS)


def stop(client: JobSubmissionClient, job: JobDetails, seconds: float) -> JobDetails:
    """Ask a job to end, and wait for it. RuntimeError where it has not within `seconds`."""
    client.stop_job(job.submission_id)
    until = time.monotonic() + seconds
    while not job.status.is_terminal():
        if time.monotonic() > until:
            raise RuntimeError(f"job {job.submission_id} has not ended in {seconds:.0f} s")
        time.sleep(LOOK_SECONDS)
        job = client.get_job_info(job.submission_id)
    return job
