"""One run of `label` for a batch: a process of this machine, or a job of the cluster."""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from ray.job_submission import JobStatus, JobSubmissionClient

from jobs.label.log.lines import without_time
from jobs.label.options import LabelOptions
from jobs.serve.batches.settings import BatchSettings
from jobs.submit import job_server
from jobs.submit.submit import Submission, start_job
from pipeline.storage.urls import mask, printable

log = logging.getLogger(__name__)

STOP_SECONDS = 60.0  # for a run that shall end: what is staged stays, and its lock is released
LEAVE_SECONDS = 4.0  # for a run whose server ends: Ray Serve kills the replica soon
LONGEST_REASON = 1000  # characters
TAIL_BYTES = 1 << 14  # of the log of a run
# What Ray sets for its own actors, and a Ray of another process must not see.
OF_RAY, KEPT = "RAY_", ("RAY_TMPDIR",)
OF_ACTORS = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


# Of the environment of a run: what its list may name, and how large its images may be.
Variables = dict[str, str]


class LabelRun(Protocol):
    """A run under way."""

    def exit_code(self) -> int | None:
        """That of `label`; None while it runs."""
        ...

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        ...

    def leave(self) -> None:
        """This server ends, or has lost the batch: end the run if it cannot go on without it."""
        ...

    def reason(self) -> str:
        """The last line of its log."""
        ...


Starter = Callable[[LabelOptions, Variables], LabelRun]


def starter(settings: BatchSettings) -> Starter:
    """What starts the runs of a server."""
    if settings.on_cluster:
        return _start_job
    return lambda options, variables: Process(
        ["jobs.serve.batches.label_command", str(os.getpid()), *label_words(options)],
        environment(variables, settings.share.gpus),
    )


class Process:
    """`label` as a child of this process: a module with its arguments.

    It ends with the thread that starts it (label_command.py).
    """

    def __init__(self, words: list[str], variables: dict[str, str]):
        self._log = tempfile.TemporaryFile(prefix="detr-batch-")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env=variables,
        )

    def exit_code(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def leave(self) -> None:
        """It cannot go on. If it ends in time, the next server need not wait for its lock."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(LEAVE_SECONDS)

    def reason(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - TAIL_BYTES))
        return last_line(self._log.read().decode(errors="replace"))


class Job:
    """`label` as a job of the cluster, which goes on if this process ends."""

    def __init__(self, client: job_server.Client, job_id: str):
        self._client, self._id = client, job_id

    def exit_code(self) -> int | None:
        try:
            job = self._client.get_job_info(self._id)
        except job_server.TROUBLES as error:  # a head that restarts
            log.warning("job %s: the job server does not answer: %s", self._id, mask(str(error)))
            return None
        if not job.status.is_terminal():
            return None
        if job.status == JobStatus.SUCCEEDED:
            return 0
        return job.driver_exit_code or job_server.EXIT_FAILED

    def stop(self) -> None:
        job_server.stop(self._client, self._client.get_job_info(self._id), STOP_SECONDS)

    def leave(self) -> None:
        """The job goes on, and the next server follows it."""

    def reason(self) -> str:
        return last_line(self._client.get_job_logs(self._id)[-TAIL_BYTES:])


def _start_job(options: LabelOptions, variables: Variables) -> Job:
    """Start the job over this OUTPUT, or find the one that runs."""
    server = JobSubmissionClient("auto").get_address()
    words = label_words(replace(options, address="auto"))
    job = Submission(replace(options, address=server), variables, words)
    job.check()
    client = job_server.connect(server)
    return Job(client, start_job(client, job, join=True))


def environment(given: Variables, gpus: str | None) -> Variables:
    """The environment of a process of `label` that an actor of Ray starts, with `given` in it."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if (not name.startswith(OF_RAY) or name in KEPT) and name not in OF_ACTORS
    }
    if gpus is not None:
        variables["CUDA_VISIBLE_DEVICES"] = gpus
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return {**variables, **given, "PYTHONPATH": path}


def label_words(options: LabelOptions) -> list[str]:
    """The arguments of `label`."""
    given = {
        "--address": options.address,
        "--model": options.model,
        "--weights": options.weights,
        "--score-threshold": options.score_threshold,
        "--format": options.format,
        "--precision": options.precision,
        "--device": options.device,
        "--num-gpus": options.num_gpus,
        "--max-detectors": options.max_detectors,
    }
    named = [str(w) for name, value in given.items() if value is not None for w in (name, value)]
    return [*named, *([] if options.page else ["--no-page"]), "--", options.input, options.output]


def last_line(text: str) -> str:
    """The last line of a log that says something, without its time and secrets."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing"]
    return printable(mask(without_time(lines[-1])))[:LONGEST_REASON]
