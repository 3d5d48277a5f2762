"""`detr-batch submit`: run `label` as a job on a Ray cluster, through its job server."""

import hashlib
import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray.job_submission import JobDetails

from jobs.label.options import LabelOptions
from jobs.submit import job_server
from jobs.submit.job_server import Client, connect, follow, jobs_named, number
from jobs.submit.shipped_files import ship
from jobs.submit.shipped_module import (
    LocalModule,
    modules_of_model,
    print_shipped,
    ship_modules,
)
from pipeline.storage.errors import CommandFailed
from pipeline.storage.files import InputError, canonical_url
from pipeline.storage.secret_names import is_secret_variable
from pipeline.storage.urls import holds_secret, identity, mask

AGENT_SECONDS = 60.0  # to wait until a new cluster can run jobs
STOP_SECONDS = 60.0  # to wait for a job's end; Ray kills it some seconds after asking it to end


@dataclass(frozen=True)
class Submission:
    """A job that runs `label`, and the cluster that runs the job."""

    options: LabelOptions  # `address` is that of the job server
    environment: Mapping[str, str]  # environment variables of the job; no secrets
    words: Sequence[str]  # the arguments of `label` on the cluster

    @property
    def server(self) -> str:
        """The URL of the job server."""
        address = self.options.address or ""
        return address if "://" in address else f"http://{address}"

    def check(self) -> None:
        """Raise InputError for options that a cluster cannot use, or that would show a secret."""
        if not self.options.address:
            raise InputError("--address: name the cluster's job server, as http://head:8265")
        if not self.server.startswith(("http://", "https://")):
            raise InputError(
                f"--address {self.options.address}: submit talks to the job server, as "
                "http://head:8265; `label --address` joins a cluster from within"
            )
        self.options.check()
        self.options.check_notify_for_job()
        for name in ("input", "output", "weights", "canaries"):
            url = getattr(self.options, name)
            if url and identity(url) != url:
                raise InputError(
                    f"{name.upper()} {mask(url)} carries a secret, which the cluster would show "
                    "to all who see its jobs: let the cluster's role read and write it"
                )
        for name in ("input", "output"):
            url = getattr(self.options, name)
            if "://" not in url and not Path(url).is_absolute():
                raise InputError(
                    f"{name.upper()} {url} is a path of this machine: give a bucket, or an "
                    "absolute path that all nodes of the cluster share"
                )
        _ = self.modules  # raises an error if they are too large
        for name in ("weights", "canaries"):
            place = getattr(self.options, name)
            if place and not Path(place).is_absolute() and Path(place).exists():
                raise InputError(
                    f"{name.upper()} {place} is a path of this machine: give a URL, or an absolute "
                    "path that all nodes of the cluster share"
                )
        for name, value in self.environment.items():
            if is_secret_variable(name):
                kind = "is named as a secret"
            elif holds_secret(value) or identity(value) != value:
                kind = "holds a password or a token"
            else:
                continue
            raise InputError(
                f"--env {name} {kind}, and the cluster would show it to all who see its jobs: give "
                "its nodes a role, or set the variable in their image or pods, which jobs inherit"
            )

    @cached_property
    def modules(self) -> list[LocalModule]:
        """The user's own modules that the job needs. InputError if they are too large."""
        return modules_of_model(self.options.model)

    def command(self) -> str:
        """The command that runs on the cluster."""
        return shlex.join(["python", "-m", "jobs.cli", "label", *self.words])

    def name(self) -> str:
        """The job id of all jobs over this OUTPUT, without the number at its end."""
        output = canonical_url(self.options.output)
        return f"detr-batch-{hashlib.sha256(output.encode()).hexdigest()[:16]}"


def submit(given: Submission, wait: bool = True, join: bool = False) -> int:
    """Start the job. With `wait`, print its log and return its exit code.

    With `join`, a job that already labels into this OUTPUT is followed instead. Raises InputError
    if the cluster does not answer, or if it runs such a job and `join` is not set.
    """
    given.check()
    client = connect(given.server)
    print_shipped(given.options.model, given.modules)
    job_id = start_job(client, given, join)
    print(f"job {job_id} on {mask(given.server)}", file=sys.stderr)
    return follow(client, job_id) if wait else 0


def start_job(client: Client, given: Submission, join: bool) -> str:
    """Start a job with the next job id over this OUTPUT, and return the id.

    Ray refuses to start two jobs with the same id. With `join`, the id of a job that runs already
    is returned, and none is started. A dry run writes no OUTPUT, and has an id of another form.
    """
    name = given.name()
    if given.options.dry_run:
        job_id = f"{name}-dry-run-{secrets.token_hex(4)}"
    else:
        before = jobs_named(client, name)
        ended = not before or before[-1].status.is_terminal()
        job_id = f"{name}-{(number(before[-1]) if before else 0) + ended}"
        if join and not ended:
            return job_id
    with TemporaryDirectory() as folder:
        ship(Path(folder))
        ship_modules(given.modules, Path(folder))
        try:
            return _submit_job(client, given, job_id, folder)
        except job_server.TROUBLES as error:
            if "already" not in str(error):
                raise CommandFailed(f"Ray takes no job: {mask(str(error))}") from error
            raise InputError(
                f"job {job_id} labels into {mask(given.options.output)} already: see --status, "
                "follow it with --follow, or end it with --stop"
            ) from error


def _submit_job(client: Client, given: Submission, job_id: str, folder: str) -> str:
    """Submit the job. Repeats it while the cluster is so new that it cannot run jobs yet."""
    until = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            started: str = client.submit_job(
                entrypoint=given.command(),
                submission_id=job_id,
                runtime_env={"working_dir": folder, "env_vars": dict(given.environment)},
                metadata={"input": given.options.input, "output": given.options.output},
            )
            return started
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(job_server.LOOK_SECONDS)


def status(given: Submission) -> dict[str, Any]:
    """The status of the newest job over this OUTPUT. Raises InputError if there is none."""
    job = _newest_job(connect(given.server), given)
    return {
        "job": job.submission_id,
        "status": str(job.status.value),
        "message": job.message and mask(job.message),
        "exit_code": job.driver_exit_code,
        "started_at": _time_of(job.start_time),
        "ended_at": _time_of(job.end_time),
        "command": mask(job.entrypoint or ""),
    }


def stop(given: Submission) -> str:
    """End the newest job over this OUTPUT, and return a message. What it labelled is kept."""
    client = connect(given.server)
    job = _newest_job(client, given)
    if job.status.is_terminal():
        return f"job {job.submission_id} had ended already: {job.status.value}"
    ended = job_server.stop(client, job, STOP_SECONDS)
    return f"job {ended.submission_id} is {ended.status.value}; submit it again to go on"


def status_as_text(document: Mapping[str, Any]) -> str:
    """The status as text."""
    return "\n".join(f"{name:<12} {value}" for name, value in document.items() if value is not None)


def _newest_job(client: Client, given: Submission) -> JobDetails:
    found = jobs_named(client, given.name())
    if not found:
        output = mask(given.options.output)
        raise InputError(f"{mask(given.server)} knows no job that labels into {output}")
    return found[-1]


def _time_of(milliseconds: int | None) -> str | None:
    """Convert Ray's Unix time in milliseconds to ISO 8601."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
