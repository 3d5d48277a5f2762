"""Airflow reads the nightly DAG and runs its task. The lock file does not contain Airflow."""

import importlib.util
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("airflow.sdk", reason="no Airflow on this machine: the DAG is not looked at")
FILE = Path(__file__).parents[2] / "infra" / "airflow" / "detr_batch_nightly.py"
PARAMS = {
    "input": "s3://lake/photos",
    "output": "s3://lake/labels; rm -r /",
    "address": "http://head:8265",
    "options": ["--spot"],
}


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("detr_batch_nightly", FILE)
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def dag(module: ModuleType) -> Any:
    return module.detr_batch_nightly()


def test_nights_neither_overlap_nor_pile_up(dag: Any) -> None:
    assert dag.schedule == "0 2 * * *"
    assert str(dag.timezone) == "Europe/Berlin"
    assert dag.max_active_runs == 1
    assert dag.catchup is False
    assert dag.dagrun_timeout < timedelta(days=1)
    (task,) = dag.tasks
    assert task.retries > 0
    assert task.retry_delay > timedelta(minutes=1), "a dead run's lease"
    assert 2 * task.execution_timeout < dag.dagrun_timeout, "room for a second try"


@pytest.mark.parametrize(
    ("code", "error"),
    [(0, None), (1, "RuntimeError"), (2, "AirflowFailException"), (3, "AirflowFailException")],
)
def test_only_what_a_second_try_mends_is_tried_again(
    code: int, error: str | None, module: ModuleType, dag: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    command = tmp_path / "detr-batch"
    command.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/said\nexit {code}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    raised = None
    try:
        dag.get_task("label").python_callable(params=PARAMS)
    except Exception as found:
        raised = type(found).__name__
        assert f"exit code {code}" in str(found)
    assert raised == error
    said = (tmp_path / "said").read_text().splitlines()
    assert said == [
        "submit", PARAMS["input"], PARAMS["output"], "--address", PARAMS["address"], "--spot",
    ]  # fmt: skip
