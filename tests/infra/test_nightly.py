"""The nightly job has few rights, and its script creates a run and waits for it."""

import json
import os
import re
import subprocess
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml

from tests.infra.manifests import KUBERAY, Document, kubectl, only, render, settings

SCRIPT = KUBERAY / "nightly" / "run-rayjob.sh"

# Answers `get` with the next line of `states` ("away": no answer), and saves what is created.
FAKE_KUBECTL = """#!/bin/sh
case "$1 $*" in
  get*--output\\ name) exec test -e "$FAKE/exists" ;;
  get*)
    state=$(head -n 1 "$FAKE/states") && sed -i 1d "$FAKE/states"
    test "$state" = away && exit 1
    printf %s "$state" ;;
  create*) cat >"$FAKE/created" && exec test ! -e "$FAKE/refused" ;;
  *) exec "$REAL_KUBECTL" "$@" ;;
esac
"""


def run(folder: Path, *states: str) -> subprocess.CompletedProcess[str]:
    """Run the script with a kubectl that reports these states."""
    program = folder / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(FAKE_KUBECTL)
    program.chmod(0o755)
    (folder / "states").write_text("".join(f"{state}\n" for state in states))
    (folder / "rayjob.yaml").write_text(yaml.safe_dump(only("RayJob", render("base"))))
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "FAKE": str(folder),
        "REAL_KUBECTL": kubectl(),
        "JOB_NAME": "detr-batch-nightly-29400000",
        "JOB_UID": "6f1f0d6e",
    }
    command = ["sh", str(SCRIPT), str(folder / "rayjob.yaml"), "0"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_run_is_created_under_the_name_of_its_night(tmp_path: Path) -> None:
    done = run(tmp_path, " : ", "Running RUNNING: ", "away", "Complete SUCCEEDED: ")
    assert done.returncode == 0, done.stderr
    created = json.loads((tmp_path / "created").read_text())
    assert created["metadata"] == {
        "name": "detr-batch-nightly-29400000-run",  # must differ from the name of the night's Job
        "namespace": "detr-batch",
        "ownerReferences": [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": "detr-batch-nightly-29400000",
                "uid": "6f1f0d6e",
            }
        ],
    }
    assert created["spec"] == only("RayJob", render("base"))["spec"]


@pytest.mark.parametrize(
    "end",
    [
        "Failed FAILED: exit code 1",
        "Complete STOPPED: ",
        "Complete FAILED: ",
        "ValidationFailed : ",
    ],
)
def test_run_that_fails_fails_its_night(tmp_path: Path, end: str) -> None:
    done = run(tmp_path, "Retrying : ", "Running RUNNING: ", end)
    assert done.returncode == 3
    assert end.strip() in done.stderr


def test_run_that_somebody_deletes_ends_the_wait(tmp_path: Path) -> None:
    done = run(tmp_path, "Running RUNNING: ", "")
    assert done.returncode == 3
    assert "deleted" in done.stderr


def test_pod_that_replaces_a_lost_one_waits_for_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "exists").touch()
    assert run(tmp_path, "Running RUNNING: ", "Complete SUCCEEDED: ").returncode == 0
    assert not (tmp_path / "created").exists()


def test_run_that_is_refused_is_tried_again_by_the_job(tmp_path: Path) -> None:
    (tmp_path / "refused").touch()
    assert run(tmp_path).returncode == 1


def cron_job() -> Document:
    return only("CronJob", render("nightly"))["spec"]


def test_one_run_at_a_time() -> None:
    """`Forbid` counts Jobs, and a Job lasts as long as its run, since the script waits."""
    spec = cron_job()
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] >= 600
    assert "activeDeadlineSeconds" not in spec["jobTemplate"]["spec"]
    (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["/bin/sh", f"/scripts/{SCRIPT.name}"]
    failing = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert failing["containerName"] == container["name"]
    assert failing["values"] == [3]


def test_schedule_is_one() -> None:
    spec = cron_job()
    assert len(spec["schedule"].split()) == 5
    assert spec["timeZone"] == settings()["time-zone"]
    ZoneInfo(spec["timeZone"])


def test_night_may_create_runs_and_nothing_else() -> None:
    found = render("nightly")
    role = only("Role", found)
    assert role["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]
    said = set(re.findall(r"kubectl (\w+) rayjob|kubectl (create)", SCRIPT.read_text()))
    assert {verb for pair in said for verb in pair if verb} == {"create", "get"}
    pod = cron_job()["jobTemplate"]["spec"]["template"]["spec"]
    (subject,) = only("RoleBinding", found)["subjects"]
    assert subject["name"] == pod["serviceAccountName"]
    assert subject["namespace"] == only("Role", found)["metadata"]["namespace"]


def test_accounts_and_config_maps_exist() -> None:
    """All but the RayJob's config map, which is made from rendered files (infra/README.md)."""
    found = render("nightly")
    names = {(document["kind"], document["metadata"]["name"]) for document in found}
    pod = cron_job()["jobTemplate"]["spec"]["template"]["spec"]
    maps = {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume} - {
        "detr-batch-rayjob"
    }
    assert {("ConfigMap", name) for name in maps} < names
    job = only("RayJob", render("base"))["spec"]["rayClusterSpec"]
    templates = [group["template"] for group in (job["headGroupSpec"], *job["workerGroupSpecs"])]
    accounts = {template["spec"]["serviceAccountName"] for template in templates}
    assert {("ServiceAccount", name) for name in accounts} < names


def test_namespace_holds_pods_to_what_they_promise() -> None:
    (namespace,) = [found for found in render("nightly") if found["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for document in render("nightly"):
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == namespace["metadata"]["name"]
