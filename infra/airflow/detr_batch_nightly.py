"""Every night: label what is new in a lake, as a job on a Ray cluster, for Airflow 3.

The work runs on the cluster; the task submits it, follows it, and ends as it ends. A night that
fails is tried again, which takes its run up where it was: nothing is labelled twice. Two nights
never overlap, and nights that Airflow missed are not caught up, as the next labels what they would
have. What a night labels, and where, are params of the DAG.
"""

import subprocess
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowFailException

# What trying again does not mend: bad arguments, and more failed images than were allowed. The run
# of the latter is published: a second one would find nothing to do, and succeed.
LASTING = {2: "refused: see the log", 3: "too many images failed: their rows say why"}
# No failure: --max-usd, --max-hours or --until ended the run. What it labelled is published, and
# the next night goes on.
ENDED_BY_BUDGET = 4


@dag(
    description="Label what is new in a lake",
    schedule="0 2 * * *",  # in the zone of start_date
    start_date=pendulum.datetime(2026, 1, 1, tz="Europe/Berlin"),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=22),  # before the next night
    tags=["detr-batch"],
    params={
        "input": Param("s3://example-lake/photos", type="string"),
        "output": Param("s3://example-lake/labels", type="string"),
        "address": Param("http://ray-head:8265", type="string", description="Ray's job server"),
        "options": Param(
            ["--instance-type", "g6.xlarge", "--spot", "--max-failed-fraction", "0.05"],
            type="array",
            items={"type": "string"},
            description="of `detr-batch label`",
        ),
    },
)
def detr_batch_nightly() -> None:
    @task(
        retries=3,
        retry_delay=timedelta(minutes=5),  # a dead run's lease ends after one
        retry_exponential_backoff=True,
        max_retry_delay=timedelta(hours=1),
        execution_timeout=timedelta(hours=10),
    )
    def label(params: dict[str, Any] | None = None) -> None:
        assert params is not None  # Airflow gives them
        command = ["detr-batch", "submit", params["input"], params["output"]]
        # A try that was given up may have left its job running: the next one follows that.
        command += ["--address", params["address"], "--follow", *params["options"]]
        code = subprocess.run(command, check=False).returncode
        if code == ENDED_BY_BUDGET:
            print("a budget ended the night: the next one goes on")
            return
        if code in LASTING:
            raise AirflowFailException(f"{LASTING[code]} (exit code {code})")
        if code:
            raise RuntimeError(f"the run ended with exit code {code}: the next try takes it up")

    label()


detr_batch_nightly()
